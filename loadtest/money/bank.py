"""Stripe's side in memory: what was bought, paid, given back and sent, and the events of it.

One job: be right about money as Stripe is, at the speed of a dictionary. It answers in the types of
`StripeClient` and remembers keys for a day, refusals too. Whoever makes faults or dies stands
between it and our code (`mortal_stripe`). The stand-in for Stripe, which speaks HTTP, is the other
way to run the same plans; a sample of them holds the two against each other.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct

from dispatch.stripe_client import (
    Account,
    Checkout,
    CheckoutSession,
    Refund,
    Reversal,
    StripeFailed,
    Transfer,
    WebhookEvent,
    verify_webhook,
)

T = TypeVar("T")
Json = dict[str, Any]

KEY_SECONDS: Final = 86_400
ALREADY: Final = ("charge_already_refunded", "idempotency_error")
ANYTHING: Final = "anything"
PAID_TYPES: Final = ("checkout.session.completed", "checkout.session.async_payment_succeeded")


class Event(Struct, frozen=True, kw_only=True):
    """What Stripe tells: `body` is what it signs. `tells_paid` is the checkout that it says is
    paid to us, `tells_closed` the one that ended without money. `listed`: it is of our own account
    and of our key's mode, so that Stripe lists it for us."""

    id: str
    type: str
    body: bytes
    tells_paid: str | None = None
    tells_closed: str | None = None
    listed: bool = True


@dataclass
class Sale:
    """A Checkout Session, and its payment intent once somebody tried to pay."""

    id: str
    payment_id: UUID | None
    cents: int
    currency: str
    metadata: dict[str, str]
    payment_intent: str | None = None
    paid: bool = False
    closed: str | None = None  # expired or failed

    def shown(self) -> Json:
        """As Stripe shows it."""
        status = "complete" if self.payment_intent else "expired" if self.closed else "open"
        return {
            "id": self.id,
            "object": "checkout.session",
            "mode": "payment",
            "livemode": False,
            "status": status,
            "payment_status": "paid" if self.paid else "unpaid",
            "amount_total": self.cents,
            "currency": self.currency,
            "payment_intent": self.payment_intent,
            "client_reference_id": None if self.payment_id is None else str(self.payment_id),
            "metadata": self.metadata,
        }


@dataclass
class Return:
    """A refund."""

    id: str
    payment_intent: str
    cents: int
    currency: str
    status: str
    payment_id: UUID | None

    def shown(self) -> Json:
        """As Stripe shows it."""
        ours = {} if self.payment_id is None else {"payment_id": str(self.payment_id)}
        return {
            "id": self.id,
            "object": "refund",
            "amount": self.cents,
            "currency": self.currency,
            "payment_intent": self.payment_intent,
            "status": self.status,
            "metadata": ours,
        }

    def told(self) -> Refund:
        """As our client gives it."""
        reason = "lost_or_stolen_card" if self.status == "failed" else None
        return Refund(self.id, self.status, self.cents, self.currency, reason, self.payment_id)


@dataclass
class Sending:
    """A transfer to a connected account; `reversals` by our own ids of them."""

    id: str
    payout_id: UUID
    cents: int
    currency: str
    destination: str
    reversals: list[tuple[UUID, str, int]] = field(default_factory=list)

    def shown(self) -> Json:
        """As Stripe shows it."""
        return {
            "id": self.id,
            "object": "transfer",
            "amount": self.cents,
            "amount_reversed": self.reversed_cents,
            "currency": self.currency,
            "destination": self.destination,
            "transfer_group": f"payout-{self.payout_id}",
            "metadata": {"payout_id": str(self.payout_id)},
        }

    def told(self) -> Transfer:
        """As our client gives it."""
        return Transfer(self.id, self.cents, self.currency, self.destination, self.reversed_cents)

    @property
    def reversed_cents(self) -> int:
        return sum(cents for _, _, cents in self.reversals)


class _Kept(NamedTuple):
    """An answer under a key, and to what."""

    at: float
    asked: object
    answer: Any


@dataclass
class Bank:
    """The books of one scenario. `now` gives seconds, for keys; ids begin with `prefix`."""

    prefix: str
    now: Callable[[], float]
    pending_refunds: bool = False
    age_seconds: int = 0  # of each event when it is first delivered
    sales: dict[str, Sale] = field(default_factory=dict)
    returns: list[Return] = field(default_factory=list)
    accounts: dict[str, bool] = field(default_factory=dict)  # whether each takes transfers
    sendings: list[Sending] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # checkouts in somebody else's account
    unwilling: set[UUID] = field(default_factory=set)
    _keys: dict[str, "_Kept"] = field(default_factory=dict)
    _ids: int = 0

    # --- what our client asks

    def create_checkout(
        self,
        *,
        payment_id: UUID,
        amount_cents: int,
        currency: str,
        metadata: dict[str, str],
        **_rest: Any,
    ) -> Checkout:
        """The hosted page of a payment; the same one when it is asked for again."""

        def make() -> Checkout:
            sale = Sale(
                self._id("cs_test"),
                payment_id,
                amount_cents,
                currency,
                {**metadata, "payment_id": str(payment_id)},
            )
            self.sales[sale.id] = sale
            return Checkout(sale.id, f"https://checkout.example/{sale.id}")

        return self._keyed(f"checkout-{payment_id}", (amount_cents, currency, metadata), make)

    def refund(self, *, payment_id: UUID, payment_intent: str, reason: str) -> Refund:
        """All that is left; what was made before, where nothing is."""

        def make() -> Refund:
            left = self._left(payment_intent)
            if left == 0:
                raise StripeFailed("already refunded", stripe_code="charge_already_refunded")
            status = "pending" if self.pending_refunds else "succeeded"
            return self._give_back(payment_intent, left, status, payment_id).told()

        try:
            return self._keyed(f"refund-{payment_id}", (payment_intent, reason), make)
        except StripeFailed as refused:
            found = self.refunds(payment_intent)
            if refused.stripe_code not in ALREADY or not found:
                raise
            return found[0]

    def refunds(self, payment_intent: str) -> list[Refund]:
        """Every refund, the newest first."""
        found = [made for made in self.returns if made.payment_intent == payment_intent]
        return [made.told() for made in reversed(found)]

    def checkout_session(self, session_id: str) -> CheckoutSession:
        """The Checkout Session as it is now."""
        if session_id not in self.sales:
            raise StripeFailed("no such checkout", stripe_code="resource_missing")
        return msgspec.convert(self.sales[session_id].shown(), CheckoutSession)

    def listing(self, types: Sequence[str]) -> list[WebhookEvent]:
        """What happened in our own account, of these types, the oldest first."""
        return [
            verify_webhook(event.body, signature(event.body, "x"), ("x",))
            for event in self.events
            if event.listed and event.type in types
        ]

    def account(self, account_id: str) -> Account:
        """Whether it takes transfers."""
        return Account(
            account_id, details_submitted=True, payouts_enabled=self.accounts[account_id]
        )

    def transfer(
        self,
        *,
        payout_id: UUID,
        amount_cents: int,
        currency: str,
        destination: str,
        metadata: dict[str, str],
    ) -> Transfer:
        """Money to an account, once a payout, for a day."""
        del metadata

        def make() -> Transfer:
            if not self.accounts[destination]:
                raise StripeFailed("no", stripe_code="insufficient_capabilities_for_transfer")
            made = Sending(self._id("tr"), payout_id, amount_cents, currency, destination)
            self.sendings.append(made)
            self._tell("transfer.created", made.shown())
            return made.told()

        return self._keyed(f"payout-{payout_id}", (amount_cents, currency, destination), make)

    def transfer_of(self, payout_id: UUID) -> Transfer | None:
        """The newest transfer that was made for a payout."""
        found = [made for made in self.sendings if made.payout_id == payout_id]
        return found[-1].told() if found else None

    def reverse(self, *, reversal_id: UUID, transfer_id: str, amount_cents: int) -> Reversal:
        """So much of a transfer comes back, once a reversal, for a day."""
        sending = self._sending(transfer_id)

        def make() -> Reversal:
            if sending.reversed_cents + amount_cents > sending.cents:
                raise StripeFailed("Reversal amount is greater than unreversed amount")
            made = Reversal(self._id("trr"), amount_cents)
            sending.reversals.append((reversal_id, made.id, amount_cents))
            self._tell("transfer.reversed", sending.shown())
            return made

        return self._keyed(f"reversal-{reversal_id}", (transfer_id, amount_cents), make)

    def reversal_of(self, *, reversal_id: UUID, transfer_id: str) -> Reversal | None:
        """The reversal that was made under this id."""
        for our_id, made_id, cents in reversed(self._sending(transfer_id).reversals):
            if our_id == reversal_id:
                return Reversal(made_id, cents)
        return None

    def _sending(self, transfer_id: str) -> Sending:
        return next(made for made in self.sendings if made.id == transfer_id)

    # --- what people do at Stripe

    def pay(self, sale: Sale, *, at_once: bool = True) -> None:
        """The customer paid on the page; the money is there at once, or comes later."""
        sale.payment_intent = self._id("pi")
        sale.paid = at_once
        self._tell("checkout.session.completed", sale.shown(), sale)
        self._tell("payment_intent.created", {"id": sale.payment_intent})

    def settle(self, sale: Sale, *, comes: bool) -> None:
        """Money that was to come later."""
        sale.paid = comes
        if comes:
            self._tell("checkout.session.async_payment_succeeded", sale.shown(), sale)
        else:
            sale.closed = "failed"
            self._tell("checkout.session.async_payment_failed", sale.shown(), sale)

    def expire(self, sale: Sale) -> None:
        """The page is closed."""
        sale.closed = "expired"
        self._tell("checkout.session.expired", sale.shown(), sale)

    def refund_by_hand(self, sale: Sale, cents: int) -> None:
        """A person gives back so much, or what is left."""
        assert sale.payment_intent is not None
        cents = min(cents, self._left(sale.payment_intent))
        if cents > 0:
            self._give_back(sale.payment_intent, cents, "succeeded", None)

    def end_refund(self, made: Return, *, fails: bool) -> None:
        """A refund did go through, or did not; also one that was believed to have."""
        made.status = "failed" if fails else "succeeded"
        self._tell("refund.updated", made.shown())
        if fails:
            self._tell("refund.failed", made.shown())
            self._tell("charge.refund.updated", made.shown())

    def sold(self, payment_id: UUID, cents: int, currency: str) -> Sale:
        """A sale that was paid, and that everybody has heard of."""
        ours = {"payment_id": str(payment_id)}
        sale = Sale(self._id("cs_test"), payment_id, cents, currency, ours, self._id("pi"), True)
        self.sales[sale.id] = sale
        return sale

    def odd(self, kind: str, sale: Sale) -> None:
        """An event that must do nothing to the sale."""
        claimed = {**sale.shown(), "payment_status": "paid", "status": "complete"}
        match kind:
            case "twin":  # Stripe sometimes makes two events of one thing
                if sale.payment_intent or sale.closed:
                    completed = not sale.closed
                    kind = "checkout.session.completed" if completed else "checkout.session.expired"
                    self._tell(kind, sale.shown(), sale)
            case "foreign":  # of a connected account, whose metadata names our payment
                shown = {**claimed, "id": self._id("cs_test"), "payment_intent": self._id("pi")}
                self._tell("checkout.session.completed", shown, account="acct_other")
                self.foreign.append(shown["id"])
            case "live":
                self._tell("checkout.session.completed", {**claimed, "livemode": True}, live=True)
            case "unknown":
                bought = Sale(self._id("cs_test"), None, 700, "eur", {})
                self.sales[bought.id] = bought
                self.pay(bought)
            case _:
                self._tell("customer.created", {"id": "cus_1", "object": "customer"})

    # --- inside

    def _left(self, payment_intent: str) -> int:
        paid = sum(s.cents for s in self.sales.values() if s.payment_intent == payment_intent)
        back = sum(
            made.cents
            for made in self.returns
            if made.payment_intent == payment_intent and made.status != "failed"
        )
        return paid - back

    def _give_back(
        self, payment_intent: str, cents: int, status: str, payment_id: UUID | None
    ) -> Return:
        sale = next(s for s in self.sales.values() if s.payment_intent == payment_intent)
        made = Return(self._id("re"), payment_intent, cents, sale.currency, status, payment_id)
        self.returns.append(made)
        self._tell("refund.created", made.shown())
        charge = {
            "id": f"ch_{payment_intent}",
            "object": "charge",
            "payment_intent": payment_intent,
            "amount": sale.cents,
            "amount_refunded": sale.cents - self._left(payment_intent),
            "metadata": sale.metadata,
        }
        self._tell("charge.refunded", charge)
        return made

    def _keyed(self, key: str, asked: object, make: Callable[[], T]) -> T:
        """The first answer under a key, a refusal too, for a day; only to the same question."""
        kept = self._keys.get(key)
        if kept is None or self.now() - kept.at > KEY_SECONDS:
            answer: Any
            try:
                answer = make()
            except StripeFailed as refused:
                answer = refused
            kept = self._keys[key] = _Kept(self.now(), asked, answer)
        if kept.asked not in (ANYTHING, asked):
            raise StripeFailed("another question", stripe_code="idempotency_error")
        if isinstance(kept.answer, StripeFailed):
            raise kept.answer
        given: T = kept.answer
        return given

    def forget_keys(self) -> None:
        """As if a day had passed."""
        self._keys.clear()

    def refuse(self, key: str, refusal: StripeFailed) -> bool:
        """For a day that is the answer under this key; False where there is one already."""
        if key in self._keys:
            return False
        self._keys[key] = _Kept(self.now(), ANYTHING, refusal)
        return True

    def _tell(
        self,
        kind: str,
        shown: Json,
        sale: Sale | None = None,
        *,
        account: str | None = None,
        live: bool = False,
    ) -> None:
        event_id = self._id("evt")
        said = {
            "id": event_id,
            "object": "event",
            "type": kind,
            "livemode": live,
            "created": int(time.time()) - self.age_seconds,
            "data": {"object": shown},
        }
        if account is not None:
            said["account"] = account
        self.events.append(
            Event(
                id=event_id,
                type=kind,
                body=msgspec.json.format(msgspec.json.encode(said), indent=2),
                tells_paid=sale.id if sale and sale.paid and kind in PAID_TYPES else None,
                tells_closed=sale.id if sale and sale.closed else None,
                listed=account is None and not live,
            )
        )

    def _id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}_{self.prefix}n{self._ids}"


def signature(body: bytes, secret: str, *, age_seconds: int = 0) -> str:
    """The header of a body that was signed so long ago."""
    at = int(time.time()) - age_seconds
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"
