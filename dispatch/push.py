"""Web push: a mechanic's devices, and telling them of an offer while she is not connected (N3).

One job: keep the rows of `push_subscriptions`, queue a notification in the transaction that makes
an offer, and deliver it from the outbox: to all her devices at once, to each once, and not after
the round is over. What a lock screen shows names no customer. Imports `core`, `store`,
`push_client`, `push_crypto`, `push_guard`, `database`, `protocol`, `queries` and `errors`.

Delivery is at least once: a node that dies after a push service took a message, and before that is
written, leaves it to be sent again. Both have the same topic and name the same offer, so a device
that is not reached yet shows one of them, and a page that replaces by `offer_id` never shows two.

It fails with `Unavailable`, `BadRequest` for a subscription that cannot be one, `NotFound`, and
`Refused` from `deliver` where a push service does not want what we send.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import msgspec
from msgspec import Meta, Struct

from dispatch import queries
from dispatch.core import routing
from dispatch.core.types import Booking, Candidate, RequestStatus, Stage
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import Forbidden, NotFound, Refused, Unavailable
from dispatch.protocol import timestamp
from dispatch.push_client import Answer, Device, Message, WebPush
from dispatch.push_crypto import Reader, to_base64url
from dispatch.push_guard import Guard
from dispatch.store import Store

log = logging.getLogger(__name__)

_SQL: Final = queries.load("push")

MAX_DEVICES: Final = 10
MAX_TTL_SECONDS: Final = 24 * 3600
MAX_ENDPOINT_CHARS: Final = 2048
_CANDIDATES_AT_ONCE: Final = 50

_KINDS: Final = {"chat": "Chat", "video": "Video call", "diagnostic": "Diagnosis"}


# --- her devices ----------------------------------------------------------------------------------


class Keys(Struct, frozen=True):
    """The keys of a browser's PushSubscription, in base64url."""

    p256dh: Annotated[str, Meta(max_length=128)]
    auth: Annotated[str, Meta(max_length=64)]


class SubscriptionForm(Struct, frozen=True):
    """`POST /api/push/subscriptions`: a PushSubscription's JSON, and a name for the device."""

    endpoint: Annotated[str, Meta(max_length=MAX_ENDPOINT_CHARS)]
    keys: Keys
    device: Annotated[str, Meta(max_length=64)] | None = None


class Subscription(Struct, frozen=True):
    """A device as its mechanic sees it; `delivered_at` is of the last notification it was sent."""

    id: UUID
    device: str | None
    created_at: str
    delivered_at: str | None


async def subscribe(
    pool: Pool, guard: Guard, mechanic_id: UUID, form: SubscriptionForm
) -> tuple[Subscription, bool]:
    """Keeps a device of this mechanic; it, and whether it is new.

    The same endpoint again is the same device with the keys and the name of now. Somebody else's
    becomes hers: a browser has one endpoint for whoever logs in, and the one before must not be
    told of offers on a screen that is no longer hers. Of more than MAX_DEVICES the oldest go.
    Raises `BadRequest` naming the field, `NotFound` for a mechanic who was deleted, `Forbidden` for
    one who is not approved, before any name of hers is looked up.
    """
    reader = Reader.parse(form.keys.p256dh, form.keys.auth)
    async with unavailable_when_lost():
        approved = await pool.fetchval(_SQL["approved"], mechanic_id)
    if approved is None:
        raise NotFound("no such mechanic")
    if not approved:
        raise Forbidden("your application is not approved")
    await guard.check(form.endpoint)
    async with transaction(pool) as connection:
        if not await connection.fetchval(_SQL["lock_mechanic"], mechanic_id):
            raise NotFound("no such mechanic")
        row = await connection.fetchrow(
            _SQL["subscribe"],
            uuid4(),
            mechanic_id,
            form.endpoint,
            to_base64url(reader.public_key),
            to_base64url(reader.auth),
            form.device,
        )
        assert row is not None
        await connection.execute(_SQL["forget_oldest"], mechanic_id, MAX_DEVICES)
    return _subscription(row), row["is_new"]


async def unsubscribe(pool: Pool, mechanic_id: UUID, subscription_id: UUID) -> None:
    """Forgets a device; `NotFound` for an unknown one and for somebody else's."""
    async with unavailable_when_lost():
        if not await pool.fetchval(_SQL["unsubscribe"], subscription_id, mechanic_id):
            raise NotFound("no such subscription")


async def subscriptions(pool: Pool, mechanic_id: UUID) -> list[Subscription]:
    """A mechanic's devices, the latest first."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["subscriptions"], mechanic_id)
    return [_subscription(row) for row in rows]


def _subscription(row: Any) -> Subscription:
    delivered_at: datetime | None = row["delivered_at"]
    return Subscription(
        id=row["id"],
        device=row["device"],
        created_at=timestamp(row["created_at"]),
        delivered_at=None if delivered_at is None else timestamp(delivered_at),
    )


# --- queueing -------------------------------------------------------------------------------------


async def queue_offer(connection: Connection, booking: Booking, mechanic_id: UUID) -> bool:
    """Queues the notification that a mechanic is asked for, in the caller's transaction.

    `booking` is in the round that she is asked in. True where one is queued now; False where she
    has no device, or was told of this round before. The caller wakes the outbox after its commit.
    """
    return await _queue(connection, booking, [mechanic_id]) == 1


async def queue_urgent(
    connection: Connection, booking: Booking, *, capacity: int, limit: int
) -> int:
    """Queues notifications of an urgent booking for mechanics who are not connected.

    They are eligible (R5) but for being online, at most `limit`, the last seen first; each gets an
    `issued` row of `offers` for her receipt. How many are queued now: 0 where the booking is not
    urgent or not in its widest stage. The caller, in whose transaction this happens, wakes the
    outbox after its commit.
    """
    if not booking.urgent or booking.stage is not Stage.OPEN:
        return 0
    chosen = await _away(connection, booking, capacity, limit)
    asked = [candidate.mechanic_id for candidate in chosen]
    scores = [routing.terms(booking, candidate).score for candidate in chosen]
    round_ = (booking.request_id, booking.generation)
    await connection.execute(_SQL["issue"], *round_, booking.stage, asked, scores)
    return await _queue(connection, booking, asked)


async def _away(
    connection: Connection, booking: Booking, capacity: int, limit: int
) -> list[Candidate]:
    """The first so many whom the core does not exclude, read no further than needed."""
    chosen: list[Candidate] = []
    async for row in connection.cursor(_SQL["away"], prefetch=_CANDIDATES_AT_ONCE):
        if len(chosen) == limit:
            break
        candidate = Candidate(**{name: row[name] for name in Candidate.__struct_fields__})
        if routing.exclusion(booking, candidate, capacity) is None:
            chosen.append(candidate)
    return chosen


async def _queue(connection: Connection, booking: Booking, mechanic_ids: Sequence[UUID]) -> int:
    rows = await connection.fetch(
        _SQL["queue"], booking.request_id, booking.generation, booking.offer_id, mechanic_ids
    )
    return len(rows)


# --- delivering -----------------------------------------------------------------------------------


class _Notice(Struct, frozen=True):
    """The payload of an effect. `settled` are the devices that need it no more."""

    request_id: UUID
    generation: int
    offer_id: UUID
    mechanic_id: UUID
    settled: tuple[UUID, ...] = ()

    @property
    def idempotency_key(self) -> str:
        return f"push-{self.request_id}-{self.generation}-{self.mechanic_id}"


async def deliver(store: Store, web_push: WebPush, capacity: int, payload: dict[str, Any]) -> None:
    """What the outbox does for the kind `push`: tells every device that was not told yet.

    Done, without telling anybody, once the round is over or is not for this mechanic any more.
    Raises `Unavailable` where a device should be tried again, `Refused` where a push service does
    not want what we send.
    """
    notice = msgspec.convert(payload, _Notice)
    booking, candidate = await _offered(store, capacity, notice)
    if booking is None or candidate is None:
        return
    async with unavailable_when_lost():
        rows = await store.pool.fetch(_SQL["devices"], notice.mechanic_id, notice.settled)
    if not rows or booking.expires_at <= rows[0]["now"]:
        return
    message = _message(booking, candidate, rows[0]["now"])
    async with asyncio.TaskGroup() as group:
        telling = []
        for row in rows:
            device = Device(row["id"], row["endpoint"], row["p256dh"], row["auth"])
            telling.append(group.create_task(_tell(store.pool, web_push, notice, device, message)))
            await asyncio.sleep(0)  # each is encrypted in a turn of its own
    _conclude(notice, [told.result() for told in telling])


async def _offered(
    store: Store, capacity: int, notice: _Notice
) -> tuple[Booking, Candidate] | tuple[None, None]:
    """The booking and the mechanic, if she can still have it in this round."""
    entry = await store.entry(notice.request_id)
    candidate = await store.candidate(notice.mechanic_id)
    if entry is None or candidate is None:
        return None, None
    booking = entry.booking
    is_open = booking.status is RequestStatus.PENDING and booking.stage is not None
    if not is_open or booking.offer_id != notice.offer_id:
        return None, None
    if routing.exclusion(booking, candidate, capacity) is not None:
        return None, None
    return booking, candidate


async def _tell(
    pool: Pool, web_push: WebPush, notice: _Notice, device: Device, message: Message
) -> Answer:
    """Sends, and writes down at once what a retry must know."""
    answer = await web_push.send(device, message)
    try:
        async with unavailable_when_lost():
            if answer.fate == "gone":
                await pool.execute(_SQL["gone"], device.id)
                log.info("a device of mechanic %s is gone: %s", notice.mechanic_id, answer.why)
            elif answer.fate != "later":
                await pool.execute(_SQL["settle"], notice.idempotency_key, device.id)
            if answer.fate == "delivered":
                await pool.execute(
                    _SQL["note_delivered"],
                    device.id,
                    notice.request_id,
                    notice.generation,
                    notice.mechanic_id,
                )
    except Unavailable as away:
        return Answer("later", away.message)
    return answer


def _conclude(notice: _Notice, answers: Sequence[Answer]) -> None:
    """One effect, several devices: tried again as long as one of them may be reached later."""
    later = [answer for answer in answers if answer.fate == "later"]
    refused = "; ".join(answer.why for answer in answers if answer.fate == "refused")
    if later:
        if refused:  # the outbox says so where there is nothing else to wait for
            log.error("%s is given up for a device: %s", notice.idempotency_key, refused)
        raise Unavailable(
            "; ".join(answer.why for answer in later),
            retry_after_seconds=max(answer.retry_after_seconds for answer in later),
        )
    if refused:
        raise Refused(refused)


def _message(booking: Booking, candidate: Candidate, now: datetime) -> Message:
    """What a device is told. Who asks, and for what, is for her eyes after she opened the page."""
    preferred = routing.terms(booking, candidate).preferred
    title = "Somebody needs a mechanic now" if booking.urgent else "Somebody needs a mechanic"
    told = {
        "type": "offer",
        "offer_id": booking.offer_id,
        "request_id": booking.request_id,
        "session_type": booking.session_type,
        "urgent": booking.urgent,
        "preferred": preferred,
        "expires_at": timestamp(booking.expires_at),
        "title": "A customer asks for you" if preferred else title,
        "body": f"{_KINDS[booking.session_type]}. Open Dispatch to answer.",
    }
    until = min(booking.stage_ends_at or booking.expires_at, booking.expires_at)
    ttl_seconds = int((until - now).total_seconds())
    return Message(
        body=msgspec.json.encode(told),
        ttl_seconds=min(max(ttl_seconds, 0), MAX_TTL_SECONDS),
        topic=to_base64url(booking.request_id.bytes),
    )
