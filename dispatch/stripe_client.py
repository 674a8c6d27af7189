"""Stripe as Dispatch needs it: make a checkout, refund a payment, believe a webhook.

Its one job: three calls with our types on both sides, so that nothing else imports stripe. It
imports `decoding`, `errors`, msgspec, and stripe and aiohttp late (they cost most of a second:
construct the client in a thread at the start, `await asyncio.to_thread(StripeClient, …)`).

It fails with
    Unavailable    Stripe is away, too busy, or refuses our key: nothing is known to have happened,
                   the same call again is right and moves money at most once
    StripeFailed   Stripe understood and refused: the same call again will be refused again
    BadRequest     a webhook that is not Stripe's, is too old, or is no event
No message holds a key.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import Annotated, Any, Final, NoReturn, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from . import decoding, errors

log = logging.getLogger(__name__)

API_VERSION = "2026-10-28.endive"  # what our shapes were written against; raise it on purpose
MAX_NETWORK_RETRIES = 2
# Stripe takes 30 minutes to 24 hours from when it reads the request; a minute for the way there.
MIN_EXPIRY_SECONDS = 30 * 60 + 60
MAX_EXPIRY_SECONDS = 24 * 3600 - 60

T = TypeVar("T")

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
    """A refund: Stripe's id, and pending, requires_action, succeeded, failed or canceled."""

    id: str
    status: str


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
    """A verified event; `object` is typed for checkout sessions and plain for all others."""

    id: str
    type: str
    livemode: bool
    created: int
    object: CheckoutSession | dict[str, Any]


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
        return Refund(made.id, made.status or "pending")

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

        if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
            log.error("Stripe refuses our key (request %s)", error.request_id)
            raise errors.Unavailable("payments are not available now") from None
        if isinstance(error, stripe.IdempotencyError):
            code = "idempotency_error"
        elif isinstance(error, stripe.InvalidRequestError | stripe.CardError):
            code = error.code or ""
        else:
            raise errors.Unavailable(f"Stripe is away ({type(error).__name__})") from None
        message = (error.user_message or "Stripe refused").replace(self._secret_key, "***")
        raise StripeFailed(message, stripe_code=code) from None


class _Data(Struct):
    object: msgspec.Raw


class _Envelope(Struct):
    id: StripeWord
    type: StripeWord
    livemode: bool
    created: int
    data: _Data


_envelope: Final = msgspec.json.Decoder(_Envelope)
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
    return WebhookEvent(event.id, event.type, event.livemode, event.created, shown)
