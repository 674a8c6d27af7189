"""Key figures: small cities counted by hand, over the days and groups that an operator asks for."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from dispatch import analytics
from dispatch.analytics import Figures, StartTimes, span
from dispatch.core.types import (
    Booking,
    Decline,
    Due,
    End,
    FavouriteLost,
    Join,
    MechanicCancel,
    Role,
)
from dispatch.database import Connection, Pool
from dispatch.errors import BadRequest
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration.living import Frame, living_node
from tests.integration.rows import (
    accept,
    add_customer,
    add_intake,
    add_mechanic,
    add_user,
    add_workshop,
    book_and_open,
    candidate,
    change,
    create,
    read,
    shift_clock,
)

PATH = "/api/admin/analytics"


def today() -> date:
    return datetime.now(UTC).date()


async def figures(pool: Pool, by: analytics.By = "day", days: int = 3) -> analytics.Analytics:
    """Of the latest days, tomorrow included, in case that midnight passes meanwhile."""
    first = today() - timedelta(days=days)
    last = today() + timedelta(days=1)
    return await analytics.analytics(pool, first, last, by, limit=20, offset=0)


class Town:
    """What may become of a booking, told with as few words as a test has."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self.connection = connection
        self.store = store

    async def for_favourite(self, favourite: UUID) -> Booking:
        return await book_and_open(
            self.connection,
            self.store,
            routing_type="priority_broadcast",
            preferred_mechanic_id=favourite,
        )

    async def taken(self, booking: Booking, mechanic_id: UUID) -> None:
        offer_id = (await read(self.connection, booking.request_id)).offer_id
        assert (await accept(self.connection, offer_id, mechanic_id)).won

    async def served(self, booking: Booking, mechanic_id: UUID, *, after_seconds: float) -> None:
        """Taken, started so long after the booking, and ended."""
        connection = self.connection
        await self.taken(booking, mechanic_id)
        await self.happens(booking, Join(mechanic_id, Role.MECHANIC))
        await self.happens(booking, Join(booking.customer_id, Role.CUSTOMER))
        await self.happens(booking, End(booking.customer_id))
        await connection.execute(
            "UPDATE sessions SET started_at = $2 WHERE id = $1",
            booking.session_id,
            booking.opens_at + timedelta(seconds=after_seconds),
        )

    async def happens(
        self, booking: Booking, event: Decline | Due | End | FavouriteLost | Join | MechanicCancel
    ) -> None:
        decision = await change(self.connection, self.store, booking.request_id, event)
        assert decision.rejection is None

    async def declined(self, booking: Booking, mechanic_id: UUID) -> None:
        who = await candidate(self.connection, mechanic_id)
        await self.happens(booking, Decline(who, booking.offer_id))

    async def expired(self, booking: Booking) -> None:
        async with self.connection.transaction():
            await shift_clock(self.connection, 3 * 3600)
            await self.happens(booking, Due())

    async def books_again(self, customer_id: UUID, **wish: object) -> None:
        await create(self.connection, await add_intake(self.connection, customer_id, **wish))


@pytest.fixture
def town(connection: Connection, store: Store) -> Town:
    return Town(connection, store)


async def test_each_figure_is_of_those_that_were_once_accepted(
    pool: Pool, connection: Connection, town: Town
) -> None:
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    # Anna takes it, and her customer comes back to her.
    loyal = await town.for_favourite(anna)
    await town.served(loyal, anna, after_seconds=20)
    await town.books_again(loyal.customer_id, preferred_mechanic_id=anna)
    # Anna takes it too, but this customer comes back to somebody else.
    fickle = await town.for_favourite(anna)
    await town.served(fickle, anna, after_seconds=40)
    await town.books_again(fickle.customer_id, preferred_mechanic_id=ben)
    # Anna declines, Ben takes it, gives it back, and the customer has left with the next one.
    given_back = await town.for_favourite(anna)
    await town.declined(given_back, anna)
    await town.taken(given_back, ben)
    await town.happens(given_back, MechanicCancel(ben))
    cleo = await add_mechanic(connection)
    await town.taken(given_back, cleo)
    await town.happens(given_back, End(given_back.customer_id))
    # Anna is lost, and nobody ever takes it.
    nobodys = await town.for_favourite(anna)
    await town.happens(nobodys, FavouriteLost("busy"))
    await town.expired(nobodys)
    # Ben takes one that was for everybody, and has it still.
    anybodys = await book_and_open(connection, town.store)
    await town.taken(anybodys, ben)

    told = await figures(pool, "strategy")

    broadcast, priority = told.groups
    assert (broadcast.strategy, priority.strategy) == ("broadcast", "priority_broadcast")
    assert priority == analytics.Group(
        strategy="priority_broadcast",
        requests=4,
        customers=4,
        accepted=3,
        completed=2,
        cancelled=1,
        expired=1,
        favorite_wanted=3,
        favorite_acceptance_rate=0.666667,
        asked_first=3,
        fallback_rate=0.333333,
        rebooking_rate=0.333333,
        time_to_start=[
            StartTimes(
                routing_type="priority_broadcast", started=2, p50_seconds=30.0, p90_seconds=38.0
            )
        ],
    )
    assert (broadcast.requests, broadcast.accepted, broadcast.time_to_start) == (3, 1, [])
    assert (broadcast.favorite_acceptance_rate, broadcast.fallback_rate) == (None, None)
    assert broadcast.rebooking_rate == 0.0
    total = told.total
    assert (total.requests, total.customers, total.accepted) == (7, 5, 4)
    assert (total.favorite_wanted, total.rebooking_rate) == (3, 0.25)
    assert total.time_to_start == priority.time_to_start


async def test_who_gave_it_back_and_nobody_followed_is_whom_a_customer_may_come_back_to(
    pool: Pool, connection: Connection, town: Town
) -> None:
    ben = await add_mechanic(connection)
    booking = await book_and_open(connection, town.store)
    await town.taken(booking, ben)
    await town.happens(booking, MechanicCancel(ben))
    await town.expired(booking)
    await town.books_again(booking.customer_id, preferred_mechanic_id=ben)

    told = await figures(pool)

    assert (told.total.requests, told.total.accepted, told.total.expired) == (2, 1, 1)
    assert told.total.rebooking_rate == 1.0


async def test_to_come_back_to_the_workshop_is_to_come_back(
    pool: Pool, connection: Connection, town: Town
) -> None:
    north, south = await add_workshop(connection), await add_workshop(connection)
    mechanic = await add_mechanic(connection, north)
    for workshop_id in (north, south):
        booking = await book_and_open(connection, town.store)
        await town.served(booking, mechanic, after_seconds=1)
        await town.books_again(booking.customer_id, workshop_id=workshop_id, routing_type="hybrid")

    assert (await figures(pool)).total.rebooking_rate == 0.5


async def test_of_nothing_there_are_no_rates(pool: Pool) -> None:
    told = await figures(pool)

    assert told.groups == []
    assert told.workshops == []
    assert told.total == Figures(
        requests=0,
        customers=0,
        accepted=0,
        completed=0,
        cancelled=0,
        expired=0,
        favorite_wanted=0,
        favorite_acceptance_rate=None,
        asked_first=0,
        fallback_rate=None,
        rebooking_rate=None,
        time_to_start=[],
    )


async def test_days_are_those_of_utc_and_both_ends_are_in(
    pool: Pool, connection: Connection
) -> None:
    for at in (
        datetime(2030, 1, 1, 23, 59, 59, 999_999, UTC),
        datetime(2030, 1, 2, 0, 0, 0, 0, UTC),
        datetime(2030, 1, 3, 12, 0, 0, 0, UTC),
        datetime(2030, 1, 3, 23, 59, 59, 999_999, UTC),
        datetime(2030, 1, 4, 0, 0, 0, 0, UTC),
    ):
        made = await create(
            connection, await add_intake(connection, await add_customer(connection))
        )
        await connection.execute(
            "UPDATE session_requests SET created_at = $2, opens_at = $2 WHERE id = $1",
            made.request_id,
            at,
        )

    told = await analytics.analytics(
        pool, date(2030, 1, 2), date(2030, 1, 3), "day", limit=20, offset=0
    )

    assert [(group.day, group.requests) for group in told.groups] == [
        ("2030-01-02", 1),
        ("2030-01-03", 2),
    ]
    assert told.total.requests == 3


async def test_a_booking_for_later_takes_its_time_from_its_opening(
    pool: Pool, connection: Connection, town: Town
) -> None:
    booking = await book_and_open(connection, town.store)
    await town.served(booking, await add_mechanic(connection), after_seconds=12)
    await connection.execute(
        "UPDATE session_requests SET created_at = created_at - interval '1 day'"
    )

    (start,) = (await figures(pool)).total.time_to_start

    assert (start.routing_type, start.p50_seconds, start.p90_seconds) == ("broadcast", 12.0, 12.0)


async def test_workshops_are_listed_by_what_they_served(
    pool: Pool, connection: Connection, town: Town
) -> None:
    north, south = await add_workshop(connection), await add_workshop(connection)
    northerner = await add_mechanic(connection, north)
    await add_workshop(connection)  # had nothing to do with any
    for _ in range(2):
        booking = await book_and_open(
            connection, town.store, workshop_id=south, routing_type="hybrid"
        )
        async with connection.transaction():
            await shift_clock(connection, 4)  # South's head start is over
            await town.happens(booking, Due())
        await town.served(booking, northerner, after_seconds=5)

    told = await figures(pool)

    assert [
        (each.workshop_id, each.preferred, each.served, each.preferred_and_served, each.completed)
        for each in told.workshops
    ] == [(north, 0, 2, 0, 2), (south, 2, 0, 0, 0)]
    second = await analytics.analytics(
        pool, today() - timedelta(days=1), today() + timedelta(days=1), "day", limit=1, offset=1
    )
    assert [each.workshop_id for each in second.workshops] == [south]
    assert second.workshops_total == 2


# --- which days -----------------------------------------------------------------------------------


def test_without_days_they_are_the_latest_thirty() -> None:
    now = date(2030, 5, 31)

    assert span(None, None, now) == (date(2030, 5, 2), now)
    assert span(None, date(2030, 1, 30), now) == (date(2030, 1, 1), date(2030, 1, 30))
    assert span(date(2030, 5, 31), None, now) == (now, now)
    assert span(date(2029, 5, 31), None, now) == (date(2029, 5, 31), now), "366 days"
    assert span(None, date.min, now) == (date.min, date.min)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (date(2030, 2, 2), date(2030, 2, 1)),
        (date(2030, 6, 1), None),
        (date(2029, 5, 30), None),
        (date.min, date.max),
    ],
)
def test_days_that_cannot_be_are_refused(first: date, last: date | None) -> None:
    with pytest.raises(BadRequest, match=r"^from: "):
        span(first, last, date(2030, 5, 31))


# --- over HTTP ------------------------------------------------------------------------------------


async def test_an_admin_asks_by_days_and_groups_and_is_told_what_does_not_fit(
    connection: Connection, make_config: MakeConfig
) -> None:
    admin_id, customer_id = await add_user(connection, "admin"), await add_customer(connection)
    wrong = (
        "from=2030-02-02&to=2030-02-01",
        "from=2029-01-01&to=2030-01-02",
        "from=yesterday",
        "from=2030-01-01T00:00:00Z",
        "from=2030-02-30",
        "by=week",
        "limit=0",
        "by=day&by=strategy",
    )
    async with living_node(make_config()) as living:

        async def ask(query: str = "") -> tuple[int, Frame]:
            return await living.call(admin_id, "admin", "GET", f"{PATH}?{query}")

        await living.book(customer_id)
        status, told = await ask()
        named = (await ask("from=2030-01-01&to=2030-12-31&by=strategy&limit=5&offset=2"))[1]
        furthest = (await ask("from=9999-12-31&to=9999-12-31"))[0]
        refused = [await ask(query) for query in wrong]
        theirs = await living.call(customer_id, "customer", "GET", PATH)

    assert status == 200
    first, last = date.fromisoformat(told["from"]), date.fromisoformat(told["to"])
    assert (told["ok"], told["by"], (last - first).days) == (True, "day", 29)
    assert told["total"]["requests"] == 1
    assert [(group["day"], group["requests"]) for group in told["groups"]] == [
        (last.isoformat(), 1)
    ]
    assert "strategy" not in told["groups"][0]
    assert told["targets"] == {
        "favorite_acceptance_rate_above": 0.7,
        "fallback_rate_below": 0.3,
        "rebooking_rate_above": 0.6,
    }
    assert (named["from"], named["to"], named["by"]) == ("2030-01-01", "2030-12-31", "strategy")
    assert (named["groups"], named["limit"], named["offset"]) == ([], 5, 2)
    assert furthest == 200
    assert [(status, answer["error"]["code"]) for status, answer in refused] == [
        (400, "bad_request")
    ] * len(wrong)
    assert theirs[0] == 403
