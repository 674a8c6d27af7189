"""Who is paid out to: accounts at Stripe of workshops and of mechanics who are paid directly (M3).

One job: have Stripe make one account a payee, lead the payee to Stripe's page where it is set up,
and keep what our rows say of it true. How far an account is is never believed of an event, which
may be old: it is read from Stripe, and a reading that began earlier never overwrites one that began
later. Imports `stripe_client`, `database`, `queries`, `config`, `protocol` and `errors`.

It fails with `Unavailable` (the same call again is right) and `StripeFailed`.
"""

import logging
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from msgspec import Struct

from dispatch import queries
from dispatch.config import Config
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Forbidden, NotFound
from dispatch.protocol import timestamp
from dispatch.stripe_client import StripeClient, StripeFailed

log = logging.getLogger(__name__)

_SQL: Final = queries.load("connect")


class Payee(Struct, frozen=True):
    """Who is paid: a workshop, or a mechanic herself."""

    kind: Literal["workshop", "mechanic"]
    id: UUID


class Onboarding(Struct, frozen=True, kw_only=True):
    """Stripe's page for one visit, to be begun before `expires_at`, and how far the account is.

    Money is paid out to it only where `payouts_enabled`.
    """

    url: str
    expires_at: str
    onboarding_completed: bool
    payouts_enabled: bool


# --- who may --------------------------------------------------------------------------------------


async def workshop_of(pool: Pool, user_id: UUID) -> Payee:
    """The workshop for which this user acts. Raises `NotFound` where there is none, and `Forbidden`
    while no admin has looked at it."""
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["workshop_of"], user_id)
    if row is None:
        raise NotFound
    if row["status"] == "pending":
        raise Forbidden("your workshop is still to be approved")
    return Payee("workshop", row["id"])


async def mechanic(pool: Pool, user_id: UUID) -> Payee:
    """The mechanic herself, also one of a workshop: a referral pays her. Raises `Forbidden` unless
    she is approved."""
    async with unavailable_when_lost():
        approved = await pool.fetchval(_SQL["mechanic"], user_id)
    if not approved:
        raise Forbidden("you are still to be approved")
    return Payee("mechanic", user_id)


# --- setting up -----------------------------------------------------------------------------------


async def onboard(pool: Pool, stripe: StripeClient, config: Config, payee: Payee) -> Onboarding:
    """A page where the payee sets up the account, which is made the first time.

    Two at once, and again after a crash anywhere, it is the same account: Stripe has its key, and
    the row keeps the first. Raises `NotFound` for who is not there, `Unavailable`, `StripeFailed`.
    """
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL[f"read_{payee.kind}"], payee.id)
    if row is None:
        raise NotFound
    account_id = row["account_id"]
    if account_id is None:
        before = row["stripe_account_before"]  # under its key Stripe would give that one again
        made = await stripe.create_account(
            payee=f"{payee.kind}-{payee.id}" + (f"-after-{before}" if before else ""),
            email=row["email"],
            metadata={f"{payee.kind}_id": str(payee.id)},
        )
        async with unavailable_when_lost():
            account_id = await pool.fetchval(_SQL[f"store_{payee.kind}"], payee.id, made.id)
    try:
        link = await stripe.account_link(
            account_id=account_id,
            return_url=f"{config.public_url}/connect/return",
            refresh_url=f"{config.public_url}/connect/refresh",
        )
    except StripeFailed:
        if row["account_id"] is None:
            raise
        await refresh(pool, stripe, account_id)  # one that is gone is forgotten
        async with unavailable_when_lost():
            now = await pool.fetchrow(_SQL[f"read_{payee.kind}"], payee.id)
        if now is None or now["account_id"] == account_id:
            raise
        return await onboard(pool, stripe, config, payee)
    return Onboarding(
        url=link.url,
        expires_at=timestamp(link.expires_at),
        onboarding_completed=row["stripe_onboarding_completed"],
        payouts_enabled=row["stripe_payouts_enabled"],
    )


# --- keeping our rows what Stripe's are -----------------------------------------------------------


async def refresh(pool: Pool, stripe: StripeClient, account_id: str) -> bool:
    """Our row says how far the account is now. False where it is nobody's account of ours.

    One that Stripe no longer shows us (disconnected, or closed) takes no payouts, and its payee may
    set up another. Raises
    `Unavailable` and `StripeFailed`; nothing has changed then.
    """
    async with unavailable_when_lost():
        read_at: datetime | None = await pool.fetchval(_SQL["moment"], account_id)
    if read_at is None:
        return False
    try:
        account = await stripe.account(account_id)
    except StripeFailed as refused:
        if refused.stripe_code != "account_invalid":
            raise
        log.error("account %s is not ours any more: nothing is paid out to it", account_id)
        async with unavailable_when_lost():
            await pool.execute(_SQL["forget"], account_id)
        return True
    async with unavailable_when_lost():
        await pool.execute(
            *(_SQL["write"], account_id, account.details_submitted, account.payouts_enabled),
            read_at,
        )
    return True
