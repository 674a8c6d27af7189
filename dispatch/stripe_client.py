"""Stripe as Dispatch needs it: checkouts, refunds, accounts to pay out to, transfers, webhooks.

Its one job: these calls with our types on both sides, so that nothing else imports stripe. It
imports `decoding`, `errors`, msgspec, and stripe and aiohttp late (they cost most of a second:
construct the client in a thread at the start, `await asyncio.to_thread(StripeClient, …)`).

The money moves as separate charges and transfers: the platform's account takes the charge, later
transfers go to connected (Express) accounts, and come back as reversals when a customer is refunded
(https://docs.stripe.com/connect/separate-charges-and-transfers).

It fails with
    Unavailable    Stripe is away, too busy, or refuses our key: nothing is known to have happened,
                   the same call again is right and moves money at most once
    StripeFailed   Stripe understood and refused: the same call again will be refused again
    BadRequest     a webhook that is not Stripe's, is too old, or is no event
No message holds a key.

Each call that moves money has a key of ours, and under it Stripe gives its first answer again, a
refusal too, for a day. After that it has forgotten the key: who asks again then first looks with
`transfer_of` and `reversal_of` whether it was done. The same key with other arguments is refused
(`idempotency_error`), so pass what was stored and not what is true by now.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from . import decoding, errors

if TYPE_CHECKING:
    import stripe

log = logging.getLogger(__name__)

API_VERSION = "2026-10-28.endive"  # what our shapes were written against; raise it on purpose
MAX_NETWORK_RETRIES = 2
# Stripe takes 30 minutes to 24 hours from when it reads the request; a minute for the way there.
MIN_EXPIRY_SECONDS = 30 * 60 + 60
MAX_EXPIRY_SECONDS = 24 * 3600 - 60
PAGE = 100  # what Stripe gives at most in one answer
MAX_EVENT_TYPES = 20  # what it takes at most in one question

T = TypeVar("T")
AskPage = Callable[[Any], Awaitable[Any]]  # the parameters that choose a page -> stripe.ListObject

# What is stored of a webhook, as the columns take it: Stripe's ids and words are printable ASCII.
StripeWord = Annotated[str, Meta(max_length=255, pattern=r"^[!-~]*\Z")]
Cents = Annotated[int, Meta(ge=0, le=2**31 - 1)]


# Refusals that time may mend.
_MENDED_BY_TIME: Final = ("balance_insufficient", "charge_not_yet_captured", "lock_timeout")


class StripeFailed(errors.Refused):
    """Stripe refused the call; `stripe_code` is its name for why (may be empty)."""

    code = "payment_failed"

    def __init__(self, message: str, *, stripe_code: str = "") -> None:
        mended_by_time = stripe_code in _MENDED_BY_TIME
        super().__init__(message, reason=stripe_code, mended_by_time=mended_by_time)
        self.stripe_code = stripe_code


class Checkout(Struct, frozen=True):
    """A Checkout Session: Stripe's id, and the hosted page to send the customer to."""

    id: str
    url: str


class Refund(Struct, frozen=True):
    """A refund: `status` is pending, requires_action, succeeded, failed or canceled.

    `failure_reason` is Stripe's word for why it failed; one that succeeded can still fail later.
    `payment_id` is there where we asked for it, and not a person at Stripe.
    """

    id: str
    status: str
    amount_cents: int
    currency: str
    failure_reason: str | None = None
    payment_id: UUID | None = None


class Account(Struct, frozen=True):
    """A connected account. Money can be sent to it once both are true; either can be lost again."""

    id: str
    details_submitted: bool
    payouts_enabled: bool


class AccountLink(Struct, frozen=True):
    """A hosted page where a person sets up their account: for one visit, for minutes."""

    url: str
    expires_at: datetime


class Transfer(Struct, frozen=True):
    """Money sent from the platform to the account `destination`; `reversed_cents` came back."""

    id: str
    amount_cents: int
    currency: str
    destination: str
    reversed_cents: int


class Reversal(Struct, frozen=True):
    """Money taken back from a transfer."""

    id: str
    amount_cents: int


class CheckoutSession(Struct, frozen=True):
    """What a `checkout.session.*` event says; amounts in cents, currency in lower case."""

    id: StripeWord
    mode: str
    livemode: bool
    payment_status: str
    status: str | None = None
    amount_total: Cents | None = None
    currency: StripeWord | None = None
    payment_intent: StripeWord | None = None
    client_reference_id: str | None = None
    metadata: dict[str, str] | None = None


class WebhookEvent(Struct, frozen=True):
    """A verified event; `object` is typed for checkout sessions and plain for all others.

    `account` is the connected account in which it happened, None for our own: what happens in
    somebody else's account, a paid checkout for instance, is no payment to us.
    """

    id: str
    type: str
    livemode: bool
    created: int
    object: CheckoutSession | dict[str, Any]
    account: str | None = None


class StripeClient:
    """One account at Stripe. Safe to share within one event loop; `close()` it at the end."""

    def __init__(
        self,
        secret_key: str,
        *,
        api_base: str | None,
        public_url: str,
        timeout_seconds: float = 20.0,
    ) -> None:
        """`api_base` None is Stripe itself; `public_url` goes before return links that are paths.

        `timeout_seconds` is for one attempt, of which there are up to three.
        """
        import aiohttp
        import stripe

        # Else it sends our platform and timings with each call, and writes an id into HOME.
        stripe.enable_telemetry = False
        self._secret_key = secret_key
        self._public_url = public_url.rstrip("/")
        self._transport = stripe.AIOHTTPClient(
            timeout=aiohttp.ClientTimeout(total=timeout_seconds, connect=5)
        )
        client = stripe.StripeClient(
            secret_key,
            stripe_version=API_VERSION,
            base_addresses={} if api_base is None else {"api": api_base.rstrip("/")},
            max_network_retries=MAX_NETWORK_RETRIES,
            http_client=self._transport,
        )
        # Looked up here, not in the first call, because each lookup imports its module.
        self._sessions = client.v1.checkout.sessions
        self._refunds = client.v1.refunds
        self._accounts = client.v1.accounts
        self._account_links = client.v1.account_links
        self._transfers = client.v1.transfers
        self._reversals = client.v1.transfers.reversals
        self._events = client.v1.events

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close_async()  # type: ignore[no-untyped-call]

    async def create_checkout(
        self,
        *,
        payment_id: UUID,
        plan_code: str,
        plan_name: str,
        amount_cents: int,
        currency: str,
        customer_email: str,
        metadata: dict[str, str],
        success_url: str,
        cancel_url: str,
        expires_in_seconds: int,
        created_at: datetime | None = None,
    ) -> Checkout:
        """Make the Checkout Session of one payment; `metadata` and `payment_id` go onto it and
        onto its payment intent.

        Made again for the same payment it is the same session, provided that every argument is
        the same: so pass the payment's own `created_at`, from which the expiry is counted
        (without it, from now). `expires_in_seconds` is brought within what Stripe takes, 31
        minutes to a minute less than 24 hours. Raises Unavailable or StripeFailed.
        """
        start = time.time() if created_at is None else created_at.timestamp()
        lifetime = min(max(expires_in_seconds, MIN_EXPIRY_SECONDS), MAX_EXPIRY_SECONDS)
        carried = {**metadata, "payment_id": str(payment_id)}
        session = await self._answer(
            self._sessions.create_async(
                {
                    "mode": "payment",
                    "client_reference_id": str(payment_id),
                    "customer_email": customer_email,
                    "expires_at": int(start) + lifetime,
                    "line_items": [
                        {
                            "quantity": 1,
                            "price_data": {
                                "currency": currency,
                                "unit_amount": amount_cents,
                                "product_data": {
                                    "name": plan_name,
                                    "metadata": {"plan": plan_code},
                                },
                            },
                        }
                    ],
                    "metadata": carried,
                    "payment_intent_data": {"metadata": carried},
                    "success_url": self._absolute(success_url),
                    "cancel_url": self._absolute(cancel_url),
                },
                {"idempotency_key": f"checkout-{payment_id}"},
            )
        )
        if session.url is None:
            raise StripeFailed("Stripe made a checkout without a page")
        return Checkout(session.id, session.url)

    async def refund(self, *, payment_id: UUID, payment_intent: str, reason: str) -> Refund:
        """Give back the whole payment, once; `reason` is ours and is kept as metadata.

        Asked again, even for another reason or when Stripe has forgotten the key (it keeps keys
        for a day), it answers with the refund that was made. Raises Unavailable or StripeFailed.
        """
        try:
            made = await self._answer(
                self._refunds.create_async(
                    {
                        "payment_intent": payment_intent,
                        "reason": "requested_by_customer",
                        "metadata": {"payment_id": str(payment_id), "reason": reason},
                    },
                    {"idempotency_key": f"refund-{payment_id}"},
                )
            )
        except StripeFailed as refused:
            if refused.stripe_code not in ("charge_already_refunded", "idempotency_error"):
                raise
            earlier = await self._answer(
                self._refunds.list_async({"payment_intent": payment_intent, "limit": 1})
            )
            if not earlier.data:
                raise
            made = earlier.data[0]
        return _refund(made)

    async def refunds(self, payment_intent: str) -> list[Refund]:
        """Every refund of the payment, ours and those made by hand, the newest first.

        Raises Unavailable or StripeFailed.
        """
        asked: Any = {"payment_intent": payment_intent}
        found = await self._every(lambda page: self._refunds.list_async(asked | page))
        return [_refund(refund) for refund in found]

    async def checkout_session(self, session_id: str) -> CheckoutSession:
        """The Checkout Session as it is now, as a webhook would say it.

        Raises Unavailable or StripeFailed.
        """
        shown = await self._answer(self._sessions.retrieve_async(session_id))
        try:
            return decoding.parse(_body(shown), _checkout_session)
        except decoding.Undecodable as error:
            raise StripeFailed(f"Stripe's checkout session cannot be read: {error}") from None

    async def create_account(self, *, payee: str, email: str, metadata: dict[str, str]) -> Account:
        """Make the Express account of one payee (`workshop-<uuid>`), who may receive transfers.

        Made again within a day it is the same account, provided that every argument is the same;
        after that it is another one, so store its id. Raises Unavailable or StripeFailed.
        """
        made = await self._answer(
            self._accounts.create_async(
                {
                    "type": "express",
                    "email": email,
                    "capabilities": {"transfers": {"requested": True}},
                    "metadata": {**metadata, "payee": payee},
                },
                {"idempotency_key": f"account-{payee}"},
            )
        )
        return _account(made)

    async def account(self, account_id: str) -> Account:
        """The account as it is now; StripeFailed `account_invalid` when it is none of ours (any
        more). Raises Unavailable or StripeFailed."""
        return _account(await self._answer(self._accounts.retrieve_async(account_id)))

    async def account_link(
        self, *, account_id: str, return_url: str, refresh_url: str
    ) -> AccountLink:
        """A page to set up the account. It leads to `return_url` when the person leaves, done or
        not (ask `account`), and to `refresh_url` when the link is used or too old.

        Raises Unavailable or StripeFailed.
        """
        made = await self._answer(
            self._account_links.create_async(
                {
                    "account": account_id,
                    "return_url": self._absolute(return_url),
                    "refresh_url": self._absolute(refresh_url),
                    "type": "account_onboarding",
                }
            )
        )
        return AccountLink(made.url, datetime.fromtimestamp(made.expires_at, UTC))

    async def transfer(
        self,
        *,
        payout_id: UUID,
        amount_cents: int,
        currency: str,
        destination: str,
        metadata: dict[str, str],
    ) -> Transfer:
        """Send money of the platform to the account `destination`; `metadata` and `payout_id` go
        onto it.

        Asked again within a day it is the same transfer; later, look with `transfer_of` first.
        Raises Unavailable, or StripeFailed: `balance_insufficient` is mended by time, but not
        under this key before a day has passed.
        """
        group = _group(payout_id)
        made = await self._answer(
            self._transfers.create_async(
                {
                    "amount": amount_cents,
                    "currency": currency,
                    "destination": destination,
                    "transfer_group": group,
                    "metadata": {**metadata, "payout_id": str(payout_id)},
                },
                {"idempotency_key": group},
            )
        )
        return _transfer(made)

    async def transfer_of(self, payout_id: UUID) -> Transfer | None:
        """The transfer that was made for this payout, if there is one.

        None says that there was none a moment ago: a call still on its way may yet make it.
        Raises Unavailable or StripeFailed.
        """
        found = await self._answer(
            self._transfers.list_async({"transfer_group": _group(payout_id), "limit": 1})
        )
        return _transfer(found.data[0]) if found.data else None

    async def reverse(self, *, reversal_id: UUID, transfer_id: str, amount_cents: int) -> Reversal:
        """Take back a part of a transfer, or all of it; the account may come to owe us money.

        Asked again within a day it is the same reversal; later, look with `reversal_of` first.
        Raises Unavailable or StripeFailed.
        """
        made = await self._answer(
            self._reversals.create_async(
                transfer_id,
                {"amount": amount_cents, "metadata": {"reversal_id": str(reversal_id)}},
                {"idempotency_key": f"reversal-{reversal_id}"},
            )
        )
        return Reversal(made.id, made.amount)

    async def reversal_of(self, *, reversal_id: UUID, transfer_id: str) -> Reversal | None:
        """The reversal of this transfer that was made under `reversal_id`, if there is one.

        Raises Unavailable or StripeFailed.
        """
        found = await self._every(lambda page: self._reversals.list_async(transfer_id, page))
        for made in found:
            carried = made.metadata.to_dict() if made.metadata else {}
            if carried.get("reversal_id") == str(reversal_id):
                return Reversal(made.id, made.amount)
        return None

    async def events(self, *, since: datetime, types: Sequence[str]) -> AsyncIterator[WebhookEvent]:
        """What happened in our own account from `since` on, the oldest first: up to 20 `types`.

        Stripe keeps events for 30 days and lists the newest first, so all are read before the
        first is given (some kilobytes each). What happened in connected accounts, such as
        `account.updated`, is not among them: ask `account`. An event that cannot be read is
        logged and left out. Raises Unavailable or StripeFailed.
        """
        assert 0 < len(types) <= MAX_EVENT_TYPES, f"{len(types)} types of events"
        newest_first: list[bytes] = []
        asked: Any = {"created": {"gte": int(since.timestamp())}, "types": list(types)}
        async for page in self._pages(lambda page: self._events.list_async(asked | page)):
            newest_first += (bytes(raw) for raw in _event_page.decode(_body(page)).data)
        for raw in reversed(newest_first):
            try:
                yield _decode(raw)
            except errors.BadRequest as error:
                log.error("an event of Stripe's is left out: %s", error.message)

    async def _every(self, ask: AskPage) -> list[Any]:
        """The objects of all pages, in Stripe's order: the newest first."""
        return [found async for page in self._pages(ask) for found in page.data]

    async def _pages(self, ask: AskPage) -> AsyncIterator[Any]:
        """All pages; `ask` gets the parameters that choose one."""
        after: dict[str, Any] = {}
        while True:
            page = await self._answer(ask({"limit": PAGE, **after}))
            yield page
            if not page.has_more or not page.data:
                return
            after = {"starting_after": page.data[-1].id}

    def _absolute(self, url: str) -> str:
        return self._public_url + url if url.startswith("/") else url

    async def _answer(self, call: Awaitable[T]) -> T:
        """What the call returns; whatever it raises as one of our errors."""
        import aiohttp
        import stripe

        try:
            return await call
        except stripe.StripeError as error:
            self._raise_typed(error)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # stripe wraps what goes wrong while connecting, not while the body is read
            raise errors.Unavailable(f"Stripe did not answer ({type(error).__name__})") from None

    def _raise_typed(self, error: Any) -> NoReturn:
        """Without the original as its cause: that one's message may show parts of the key."""
        import stripe

        code = getattr(error.error, "code", None) or ""
        if code == "account_invalid":  # 403 as a refused key is, and as final as a 404
            raise self._failed(error, code) from None
        if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
            log.error("Stripe refuses our key (request %s)", error.request_id)
            raise errors.Unavailable("payments are not available now") from None
        in_use = error.http_status == 409 or code == "idempotency_key_in_use"
        if isinstance(error, stripe.IdempotencyError) and not in_use:
            raise self._failed(error, "idempotency_error") from None
        if isinstance(error, stripe.InvalidRequestError | stripe.CardError) and not in_use:
            raise self._failed(error, code) from None
        raise errors.Unavailable(f"Stripe is away ({type(error).__name__})") from None

    def _failed(self, error: "stripe.StripeError", code: str) -> StripeFailed:
        message = (error.user_message or "Stripe refused").replace(self._secret_key, "***")
        return StripeFailed(message, stripe_code=code)


def _group(payout_id: UUID) -> str:
    """A payout's key, and the group by which its transfer is found."""
    return f"payout-{payout_id}"


def _account(made: "stripe.Account") -> Account:
    return Account(made.id, bool(made.details_submitted), bool(made.payouts_enabled))


def _refund(made: "stripe.Refund") -> Refund:
    # Stripe names a reason only in a refund that failed.
    reason = getattr(made, "failure_reason", None)
    status = made.status or "pending"
    return Refund(
        made.id, status, made.amount, made.currency, reason, our_id(made.metadata, "payment_id")
    )


def our_id(metadata: Any, name: str) -> UUID | None:
    """Our own id of this name, from what we have Stripe keep with an object: `payment_id` with a
    checkout, a charge and a refund, `payout_id` with a transfer."""
    try:
        return UUID(metadata[name])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _transfer(made: "stripe.Transfer") -> Transfer:
    destination = made.destination
    assert isinstance(destination, str), "a destination is an id unless it is to be expanded"
    return Transfer(made.id, made.amount, made.currency, destination, made.amount_reversed)


def _body(shown: "stripe.StripeObject") -> str:
    """The bytes that Stripe sent, before its library made an object of them."""
    assert shown.last_response is not None
    return shown.last_response.body


class _Data(Struct):
    object: msgspec.Raw


class _Envelope(Struct):
    id: StripeWord
    type: StripeWord
    livemode: bool
    created: int
    data: _Data
    account: StripeWord | None = None


class _EventPage(Struct):
    data: list[msgspec.Raw]


_envelope: Final = msgspec.json.Decoder(_Envelope)
_event_page: Final = msgspec.json.Decoder(_EventPage)
_checkout_session: Final = msgspec.json.Decoder(CheckoutSession)
_other: Final = msgspec.json.Decoder(dict[str, Any])


def verify_webhook(
    raw: bytes, signature: str, secrets: tuple[str, ...], tolerance_seconds: int = 300
) -> WebhookEvent:
    """The event in `raw`, if one of `secrets` signed these bytes at most `tolerance_seconds` ago.

    `signature` is the Stripe-Signature header; several secrets are good while one is being
    replaced. Raises BadRequest for a wrong signature, an old timestamp or a body that is no
    event, NotConfigured without a secret.

    The scheme (https://docs.stripe.com/webhooks#verify-manually) is computed here with hmac and
    not by stripe's own code, which takes one secret at a time, decodes and encodes the body
    again for each, and would make the first webhook wait for the import of stripe. A test holds
    the two against each other.
    """
    if not secrets:
        raise errors.NotConfigured("no secret for Stripe's webhooks is configured")
    fields = [part.partition("=") for part in signature.split(",")]
    timestamp = next((value for name, _, value in fields if name == "t"), "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise errors.BadRequest("the webhook's signature has no timestamp")
    given = [value.encode() for name, _, value in fields if name == "v1"]
    signed = timestamp.encode() + b"." + raw
    expected = [
        hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode() for secret in secrets
    ]
    if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in given):
        raise errors.BadRequest("the webhook's signature is wrong")
    if int(timestamp) < time.time() - tolerance_seconds:
        raise errors.BadRequest("the webhook is too old")
    return _decode(raw)


def _decode(raw: bytes) -> WebhookEvent:
    shown: CheckoutSession | dict[str, Any]
    try:
        event = decoding.parse(raw, _envelope)
        if event.type.startswith("checkout.session."):
            shown = decoding.parse(bytes(event.data.object), _checkout_session)
        else:
            shown = decoding.parse(bytes(event.data.object), _other)
    except decoding.Undecodable as error:
        raise errors.BadRequest(f"the webhook is not an event: {error}") from None
    return WebhookEvent(event.id, event.type, event.livemode, event.created, shown, event.account)
