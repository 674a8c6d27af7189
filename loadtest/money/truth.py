"""What was so at the end of a scenario, as plain values: Stripe's books, our rows, what was said.

One job: the types that the rules judge. Whoever has run something fills them in, be it a scenario
in this process or a server that was killed. Amounts are cents, currencies in lower case.
"""

from uuid import UUID

from msgspec import Struct


class Money(Struct, frozen=True, kw_only=True):
    """What came in at Stripe by one checkout. `payment_id` is from its metadata; `told`: an event
    that says so was answered with 2xx."""

    checkout_id: str
    payment_intent: str
    cents: int
    currency: str
    payment_id: UUID | None
    told: bool


class GivenBack(Struct, frozen=True, kw_only=True):
    """A refund at Stripe; `payment_id` where we asked for it, and not a person."""

    id: str
    payment_intent: str
    cents: int
    failed: bool
    payment_id: UUID | None


class Payment(Struct, frozen=True, kw_only=True):
    """A row of ours."""

    id: UUID
    customer_id: UUID | None
    intake_id: UUID | None
    session_id: UUID | None
    stripe_session_id: str | None
    payment_intent: str | None
    amount_cents: int
    currency: str
    received_cents: int | None
    received_currency: str | None
    refunded_cents: int
    credited_cents: int
    status: str


class Session(Struct, frozen=True, kw_only=True):
    """A booking of ours. `refundings`: how often its history says that money goes back."""

    id: UUID
    customer_id: UUID
    intake_id: UUID | None
    slot_id: UUID | None
    stripe_session_id: str | None
    status: str
    has_workshop: bool
    creations: int
    refundings: int


class Slot(Struct, frozen=True, kw_only=True):
    """`over`: its time was over at the end."""

    id: UUID
    capacity: int
    taken: int
    over: bool


class Effect(Struct, frozen=True, kw_only=True):
    """A row of the outbox, about a payment."""

    idempotency_key: str
    payment_id: UUID | None
    done: bool
    given_up: bool


class Earning(Struct, frozen=True, kw_only=True):
    """What a mechanic has of a session."""

    session_id: UUID
    gross_cents: int
    net_cents: int
    reversed_cents: int


class Wallet(Struct, frozen=True, kw_only=True):
    """The credits of a customer."""

    customer_id: UUID
    balance_cents: int


class Truth(Struct, frozen=True, kw_only=True):
    """All of it. `answered` are the events that were taken, `refused` those that had to be (as
    they were not Stripe's own bytes of just now); `events` our ledger; `lost` ones
    were given up, as nobody needs them, and may stand in it. `closed` by checkout: how
    Stripe said that one ended without money. `unwilling`: Stripe refused to give these back.
    `cancelled`: sessions of which a customer was told that they are."""

    money: list[Money]
    given_back: list[GivenBack]
    closed: dict[str, str]
    unwilling: set[UUID]
    answered: set[str]
    unanswered: set[str]
    lost: set[str]
    taken_wrongly: set[str]
    events: list[str]
    payments: list[Payment]
    sessions: list[Session]
    slots: list[Slot]
    effects: list[Effect]
    earnings: list[Earning]
    wallets: list[Wallet]
    cancelled: set[UUID]
    bugs: list[str]
