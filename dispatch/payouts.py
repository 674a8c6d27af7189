"""Money that is paid out to workshops and mechanics, and taken back of that (M3).

One job: make a payout of all that a payee is owed, have Stripe transfer it once, reverse once what
a refund takes back afterwards, and keep our rows what Stripe's are. Imports `connect`,
`stripe_client`, `database`, `queries`, `protocol` and `errors`; whoever runs payouts wakes the
outbox afterwards.

    earnings of a payee ── make_payout() ──> pending ── before the first call ──> processing
    processing ── its transfer is there ──> paid ── a refund ──> a reversal of so much, which
    processing ── Stripe refused ─────────> failed: its earnings are in the next payout
        is reversed, or failed: a debt, by which the payee's next payout is less

The row is first: a payout is one transfer under a key that names it, and what may have been sent
before is looked up before it is sent again, because Stripe forgets keys after a day. So it does not
matter where a node dies in it. What Stripe shows of a transfer only ever grows (it is there; so
much came back), so readings may be written in any order.

It fails with `Unavailable` (the same call again is right) and `StripeFailed` (for now). What Stripe
refuses for good is written into the row; what should not be is logged as an error, for a person.
"""

import contextlib
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import connect, queries
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import NotFound, Unavailable
from dispatch.protocol import timestamp
from dispatch.stripe_client import Reversal, StripeClient, StripeFailed, Transfer

log = logging.getLogger(__name__)

_SQL: Final = queries.load("payouts")

# A refusal that time may mend is one for good after this: the day for which Stripe repeats it under
# the same key, and a try after that.
PATIENCE: Final = timedelta(hours=25)

Cause = Literal["hand", "schedule"]
Status = Literal["pending", "processing", "paid", "failed"]


class Payee(Struct, frozen=True):
    """Who is paid: a workshop, or a mechanic herself."""

    kind: Literal["workshop", "mechanic"]
    id: UUID
    name: str


class Made(Struct, frozen=True, kw_only=True):
    """A payout that was made; its transfer is in the outbox."""

    payout_id: UUID
    payee: Payee
    amount_cents: int
    currency: str


class Skipped(Struct, frozen=True, kw_only=True):
    """Somebody who stays owed `due_cents`, which debts may have brought below zero."""

    payee: Payee
    due_cents: int
    currency: str
    reason: Literal["below_minimum", "no_account", "payouts_disabled"]


class Report(Struct, frozen=True, kw_only=True):
    """What became of everybody who was owed something."""

    made: list[Made]
    skipped: list[Skipped]


class Listed(Struct, frozen=True, kw_only=True):
    """A payout in the list of operators. `debts_cents` is by how much it is less than was earned,
    `reversed_cents` what came back of it."""

    payout_id: UUID
    payee: Payee
    amount_cents: int
    reversed_cents: int
    debts_cents: int
    currency: str
    status: Status
    cause: Cause
    created_by: UUID | None
    note: str | None
    stripe_transfer_id: str | None
    created_at: str
    settled_at: str | None


class Listing(Struct, frozen=True, kw_only=True):
    """One page of payouts, the newest first, and how many there are."""

    payouts: list[Listed]
    total: int
    limit: int
    offset: int


class _Payout(Struct, frozen=True, kw_only=True):
    id: UUID
    workshop_id: UUID | None
    mechanic_id: UUID | None
    stripe_account_id: str
    amount_cents: int
    currency: str
    status: Status
    stripe_transfer_id: str | None
    old: bool  # no longer to be waited for


# --- making payouts -------------------------------------------------------------------------------


async def run(
    pool: Pool,
    *,
    cause: Cause,
    minimum_cents: int,
    created_by: UUID | None = None,
    workshop_id: UUID | None = None,
    mechanic_id: UUID | None = None,
) -> Report:
    """A payout for everybody, or for one, who is owed at least `minimum_cents` of a currency.

    Each is a transaction of its own, so a run that is broken off is continued by the next, and two
    at once pay nobody twice. Raises `NotFound` for a payee who does not exist, and `Unavailable`:
    what was made before that stands.
    """
    async with unavailable_when_lost():
        one = workshop_id or mechanic_id
        if one is not None and not await pool.fetchval(_SQL["is_payee"], workshop_id, mechanic_id):
            raise NotFound
        made: dict[UUID, asyncpg.Record] = {}
        skipped = []
        for row in await pool.fetch(_SQL["due"], workshop_id, mechanic_id):
            reason = _obstacle(row, minimum_cents)
            payout_id = None
            if reason is None:
                payee = (row["workshop_id"], row["mechanic_id"], row["currency"])
                payout_id = await pool.fetchval(
                    _SQL["make_payout"], *payee, minimum_cents, cause, created_by
                )
            if payout_id is not None:
                made[payout_id] = row
            elif reason is not None:  # else another run has just paid it
                skipped.append(_skipped(row, reason))
        stored = await pool.fetch(_SQL["amounts"], list(made))
    amounts = {each["id"]: each["amount_cents"] for each in stored}
    return Report(
        made=[_made(payout_id, amounts[payout_id], row) for payout_id, row in made.items()],
        skipped=skipped,
    )


def _obstacle(
    row: asyncpg.Record, minimum_cents: int
) -> Literal["below_minimum", "no_account", "payouts_disabled"] | None:
    if row["due_cents"] < minimum_cents:
        return "below_minimum"
    if row["account_id"] is None:
        return "no_account"
    return None if row["stripe_payouts_enabled"] else "payouts_disabled"


def _made(payout_id: UUID, amount_cents: int, row: asyncpg.Record) -> Made:
    return Made(
        payout_id=payout_id,
        payee=_payee(row),
        amount_cents=amount_cents,
        currency=row["currency"],
    )


def _skipped(
    row: asyncpg.Record, reason: Literal["below_minimum", "no_account", "payouts_disabled"]
) -> Skipped:
    return Skipped(
        payee=_payee(row), due_cents=row["due_cents"], currency=row["currency"], reason=reason
    )


def _payee(row: asyncpg.Record) -> Payee:
    if row["workshop_id"] is not None:
        return Payee("workshop", row["workshop_id"], row["name"])
    return Payee("mechanic", row["mechanic_id"], row["name"])


async def listing(pool: Pool, status: Status | None, limit: int, offset: int) -> Listing:
    """Up to `limit` payouts of a status, or of any, from the `offset`th on."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["payouts"], status, limit, offset)
        total = await pool.fetchval(_SQL["count"], status)
    return Listing(payouts=[_listed(row) for row in rows], total=total, limit=limit, offset=offset)


def _listed(row: asyncpg.Record) -> Listed:
    as_they_are = set(Listed.__struct_fields__) & set(row.keys()) - {"created_at", "settled_at"}
    settled_at = row["settled_at"]
    return Listed(
        payee=_payee(row),
        created_at=timestamp(row["created_at"]),
        settled_at=None if settled_at is None else timestamp(settled_at),
        **{name: row[name] for name in as_they_are},
    )


# --- transfers ------------------------------------------------------------------------------------


async def deliver_transfer(pool: Pool, stripe: StripeClient, payload: Mapping[str, str]) -> None:
    """What the outbox does for the kind `transfer`: the money is sent, then our row says so.

    Done again after a crash anywhere in it, it is the same transfer. One that Stripe refuses for
    good is done as well: the payout has failed, and its earnings are in the next one. Raises
    `Unavailable`, and `StripeFailed` for a refusal that time may mend.
    """
    payout_id = UUID(payload["payout_id"])
    async with unavailable_when_lost():
        is_first = await pool.fetchval(_SQL["begin"], payout_id)
    payout = await _payout(pool, payout_id)
    assert payout is not None, "a transfer is queued for a payout that exists"
    if payout.status != "processing":
        return
    transfer = None if is_first else await stripe.transfer_of(payout_id)
    if transfer is None:
        transfer = await _send(pool, stripe, payout)
    if transfer is not None:
        await _write(pool, payout, transfer)


async def _send(pool: Pool, stripe: StripeClient, payout: _Payout) -> Transfer | None:
    """The payout's transfer; None where Stripe refused it and the payout has failed."""
    payee = {"workshop_id": payout.workshop_id, "mechanic_id": payout.mechanic_id}
    try:
        return await stripe.transfer(
            payout_id=payout.id,
            amount_cents=payout.amount_cents,
            currency=payout.currency,
            destination=payout.stripe_account_id,
            metadata={name: str(value) for name, value in payee.items() if value is not None},
        )
    except StripeFailed as refused:
        _wait_where_right(refused, payout.old)
        # It must not have failed for us and be there at Stripe, whatever else went wrong.
        transfer = await stripe.transfer_of(payout.id)
        if transfer is None:
            log.error("payout %s failed: %s", payout.id, refused.message)
            await _settle(pool, payout.id, "failed", None, _why(refused))
            with contextlib.suppress(StripeFailed):  # the account may take none now
                await connect.refresh(pool, stripe, payout.stripe_account_id)
        return transfer


async def refresh(pool: Pool, stripe: StripeClient, payout_id: UUID) -> bool:
    """Our row says what Stripe says of the payout's transfer. False where it is no payout of ours.

    Raises `Unavailable` and `StripeFailed`; nothing has changed then.
    """
    payout = await _payout(pool, payout_id)
    if payout is None:
        return False
    transfer = await stripe.transfer_of(payout_id)
    if transfer is not None:
        await _write(pool, payout, transfer)
    elif payout.status == "paid":
        log.error("payout %s is paid, and Stripe shows no transfer of it", payout_id)
    return True


async def _payout(pool: Pool, payout_id: UUID) -> _Payout | None:
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["payout"], payout_id, PATIENCE)
    return None if row is None else _Payout(**row)


async def _write(pool: Pool, payout: _Payout, transfer: Transfer) -> None:
    """The transfer is there: the payout is paid, and so much of it came back."""
    await _settle(pool, payout.id, "paid", transfer.id, None)
    async with unavailable_when_lost():
        known = await pool.fetchrow(_SQL["note_reversed"], payout.id, transfer.reversed_cents)
    assert known is not None
    wrong = []
    if known["status"] == "failed":
        wrong.append("it is held for failed, and was paid")
    if known["stripe_transfer_id"] != transfer.id:
        wrong.append(f"it was paid twice, also by {known['stripe_transfer_id']}")
    sent = (transfer.amount_cents, transfer.currency, transfer.destination)
    if sent != (payout.amount_cents, payout.currency, payout.stripe_account_id):
        wrong.append("another amount was sent, or to another account")
    if transfer.reversed_cents > known["asked_cents"]:
        wrong.append(f"{transfer.reversed_cents} cents came back, not {known['asked_cents']}")
    if wrong:
        log.error("payout %s, transfer %s: %s", payout.id, transfer.id, "; ".join(wrong))


async def _settle(
    pool: Pool,
    payout_id: UUID,
    status: Literal["paid", "failed"],
    transfer_id: str | None,
    note: str | None,
) -> None:
    async with unavailable_when_lost():
        await pool.execute(_SQL["settle"], payout_id, status, transfer_id, note)


# --- reversals ------------------------------------------------------------------------------------


async def deliver_reversal(pool: Pool, stripe: StripeClient, payload: Mapping[str, str]) -> None:
    """What the outbox does for the kind `reversal`: so much of a paid payout comes back.

    Done again after a crash anywhere in it, it is the same reversal. One that Stripe refuses for
    good is done as well: it is a debt of the payee, and an alarm. Raises `Unavailable`, also while
    the payout is under way, and `StripeFailed` for a refusal that time may mend.
    """
    reversal_id = UUID(payload["reversal_id"])
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["reversal"], reversal_id, PATIENCE)
    assert row is not None, "a reversal is queued that exists"
    if row["status"] != "pending":
        return
    if row["payout_status"] == "failed":
        await _settle_reversal(pool, reversal_id, "void", None, None)
        return
    if row["payout_status"] != "paid":
        raise Unavailable("the payout is under way")
    made = await _reversal_of(stripe, row)
    if made is None:
        made = await _reverse(pool, stripe, row)
    if made is not None:
        await _settle_reversal(pool, reversal_id, "reversed", made.id, None)


async def _reverse(pool: Pool, stripe: StripeClient, row: asyncpg.Record) -> Reversal | None:
    """The reversal; None where Stripe refused it, and it is a debt."""
    try:
        return await stripe.reverse(
            reversal_id=row["id"],
            transfer_id=row["stripe_transfer_id"],
            amount_cents=row["amount_cents"],
        )
    except StripeFailed as refused:
        _wait_where_right(refused, row["old"])
        made = await _reversal_of(stripe, row)
        if made is None:
            log.error(
                "%d cents of payout %s are owed back: %s",
                *(row["amount_cents"], row["payout_id"], refused.message),
            )
            await _settle_reversal(pool, row["id"], "failed", None, _why(refused))
        return made


async def _reversal_of(stripe: StripeClient, row: asyncpg.Record) -> Reversal | None:
    return await stripe.reversal_of(reversal_id=row["id"], transfer_id=row["stripe_transfer_id"])


async def _settle_reversal(
    pool: Pool,
    reversal_id: UUID,
    status: Literal["reversed", "failed", "void"],
    stripe_id: str | None,
    note: str | None,
) -> None:
    async with unavailable_when_lost():
        await pool.execute(_SQL["settle_reversal"], reversal_id, status, stripe_id, note)


def _wait_where_right(refused: StripeFailed, old: bool) -> None:
    """Raises where a refusal says nothing for good.

    Nothing at all it says of a key that was used for something else: that may have been done.
    """
    if refused.stripe_code == "idempotency_error":
        raise Unavailable(f"Stripe knows the key: {refused.message}")
    if refused.mended_by_time and not old:
        raise refused


def _why(refused: StripeFailed) -> str:
    return " ".join(filter(None, (refused.message, refused.reason)))
