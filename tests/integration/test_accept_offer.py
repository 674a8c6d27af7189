"""The judge in Postgres: one winner a round, everybody else told why, the same verdict for ever."""

import asyncio
from collections import Counter
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from dispatch.core.types import Cancel, Decline, MechanicCancel, Policy, RequestStatus
from dispatch.database import Connection, Pool
from dispatch.store import Store, Verdict
from tests.integration.conftest import CONNECTIONS
from tests.integration.rows import (
    POLICY,
    accept,
    add_mechanic,
    add_workshop,
    book,
    book_and_open,
    candidate,
    change,
    occupy,
    read,
    shift_clock,
    until_blocked,
)

RACERS = CONNECTIONS


def lost(reason: str) -> tuple[bool, str | None]:
    return (False, reason)


WON = (True, None)


def said(verdict: Verdict) -> tuple[bool, str | None]:
    return (verdict.won, verdict.reason)


async def accepts_at_once(
    pool: Pool, rounds: list[tuple[UUID, UUID, UUID]], policy: Policy = POLICY
) -> list[tuple[bool, str | None]]:
    """Each (offer_id, mechanic_id, accept_id) from a connection of its own, all let go together."""
    ready = asyncio.Barrier(len(rounds))

    async def one(offer_id: UUID, mechanic_id: UUID, accept_id: UUID) -> tuple[bool, str | None]:
        async with pool.acquire() as connection:
            await ready.wait()
            return said(await accept(connection, offer_id, mechanic_id, accept_id, policy=policy))

    return list(await asyncio.gather(*(one(*round_) for round_ in rounds)))


# --- races ----------------------------------------------------------------------------------------


async def test_of_fifty_who_accept_at_once_one_wins_and_every_verdict_is_kept(
    pool: Pool, connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    mechanics = [await add_mechanic(connection) for _ in range(RACERS - 1)]

    verdicts = await accepts_at_once(
        pool, [(booking.offer_id, mechanic_id, uuid4()) for mechanic_id in mechanics]
    )

    assert Counter(verdicts) == {WON: 1, lost("taken"): len(mechanics) - 1}
    winner = mechanics[verdicts.index(WON)]
    after = await read(connection, booking.request_id)
    assert (after.status, after.mechanic_id) == (RequestStatus.ACCEPTED, winner)
    assert after.version == booking.version + 1
    kept = await connection.fetch("SELECT mechanic_id, verdict, reason FROM accepts")
    assert {row["mechanic_id"]: (row["verdict"] == "won", row["reason"]) for row in kept} == dict(
        zip(mechanics, verdicts, strict=True)
    )
    answers = await connection.fetch("SELECT mechanic_id, status FROM offers")
    assert {row["mechanic_id"] for row in answers if row["status"] == "accepted"} == {winner}
    assert len(answers) == len(mechanics)


async def test_one_accept_id_from_many_connections_gets_one_verdict(
    pool: Pool, connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id, accept_id = await add_mechanic(connection), uuid4()

    verdicts = await accepts_at_once(pool, [(booking.offer_id, mechanic_id, accept_id)] * 10)

    assert verdicts == [WON] * 10
    assert await connection.fetchval("SELECT count(*) FROM accepts") == 1
    assert (await read(connection, booking.request_id)).version == booking.version + 1


async def test_a_mechanic_who_accepts_two_rounds_at_once_wins_one_and_is_busy_for_the_other(
    pool: Pool, connection: Connection, store: Store
) -> None:
    bookings = [await book_and_open(connection, store) for _ in range(2)]
    mechanic_id = await add_mechanic(connection)

    verdicts = await accepts_at_once(
        pool, [(booking.offer_id, mechanic_id, uuid4()) for booking in bookings]
    )

    assert sorted(verdicts) == [lost("busy"), WON]
    assert (await candidate(connection, mechanic_id)).live_sessions == 1


async def test_a_mechanic_takes_as_much_at_once_as_her_capacity_has_slots(
    pool: Pool, connection: Connection, store: Store
) -> None:
    bookings = [await book_and_open(connection, store) for _ in range(5)]
    mechanic_id = await add_mechanic(connection)

    verdicts = await accepts_at_once(
        pool,
        [(booking.offer_id, mechanic_id, uuid4()) for booking in bookings],
        Policy(mechanic_capacity=3),
    )

    assert Counter(verdicts) == {WON: 3, lost("busy"): 2}
    slots = await connection.fetch("SELECT mechanic_slot FROM sessions WHERE status = 'accepted'")
    assert sorted(row["mechanic_slot"] for row in slots) == [1, 2, 3]


async def test_one_accept_id_for_two_rounds_at_once_belongs_to_one_of_them(
    pool: Pool, connection: Connection, store: Store
) -> None:
    mechanic_id = await add_mechanic(connection)
    for _ in range(10):
        bookings = [await book_and_open(connection, store) for _ in range(2)]
        accept_id = uuid4()

        verdicts = await accepts_at_once(
            pool,
            [(booking.offer_id, mechanic_id, accept_id) for booking in bookings],
            Policy(mechanic_capacity=100),
        )

        assert sorted(verdicts) == [lost("not_found"), WON]


# --- the same verdict for ever --------------------------------------------------------------------


async def test_won_stays_won_and_lost_stays_lost_whatever_happens_later(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    winner, loser = await add_mechanic(connection), await add_mechanic(connection)
    ids = {winner: uuid4(), loser: uuid4()}
    offer_id = booking.offer_id
    first = [said(await accept(connection, offer_id, who, ids[who])) for who in ids]

    await change(connection, store, booking.request_id, MechanicCancel(winner))
    again = [said(await accept(connection, offer_id, who, ids[who])) for who in ids]

    assert first == again == [WON, lost("taken")]


async def test_a_verdict_of_not_found_does_not_turn_when_the_offer_is_for_her_later(
    connection: Connection, store: Store
) -> None:
    early = await book(connection)
    mechanic_id, accept_id = await add_mechanic(connection), uuid4()

    refused = await accept(connection, early.offer_id, mechanic_id, accept_id)
    await connection.execute("UPDATE session_requests SET stage = 'open'")
    again = await accept(connection, early.offer_id, mechanic_id, accept_id)
    anew = await accept(connection, early.offer_id, mechanic_id)

    assert [said(v) for v in (refused, again, anew)] == [
        lost("not_found"),
        lost("not_found"),
        WON,
    ]


async def test_the_winner_s_second_accept_id_has_won_as_well_and_changes_nothing(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    fresh = await accept(connection, booking.offer_id, mechanic_id)
    before = await read(connection, booking.request_id)

    second = await accept(connection, booking.offer_id, mechanic_id)

    assert fresh.entry is not None
    assert fresh.entry.booking == before
    assert said(second) == WON
    assert second.entry is None
    assert await read(connection, booking.request_id) == before


async def test_who_was_busy_and_is_free_again_wins_with_a_new_accept_id(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    await occupy(connection, mechanic_id, mechanic_slot=1)
    busy = await accept(connection, booking.offer_id, mechanic_id)
    await connection.execute("UPDATE sessions SET status = 'completed' WHERE status = 'accepted'")

    free = await accept(connection, booking.offer_id, mechanic_id)

    assert (said(busy), said(free)) == (lost("busy"), WON)
    assert await connection.fetchval("SELECT status FROM offers") == "accepted"
    assert await connection.fetchval("SELECT reason FROM offers") is None


async def test_an_accept_id_of_one_round_is_unknown_in_another(
    connection: Connection, store: Store
) -> None:
    one, other = [await book_and_open(connection, store) for _ in range(2)]
    mechanic_id, accept_id = await add_mechanic(connection), uuid4()
    await accept(connection, one.offer_id, mechanic_id, accept_id)

    verdict = await accept(connection, other.offer_id, mechanic_id, accept_id)

    assert said(verdict) == lost("not_found")
    assert (verdict.request_id, verdict.session_id) == (None, None)


# --- why not --------------------------------------------------------------------------------------


async def test_a_round_that_does_not_exist_is_not_found_and_nothing_is_kept(
    connection: Connection,
) -> None:
    verdict = await accept(connection, uuid4(), await add_mechanic(connection))

    assert verdict == Verdict(
        won=False, reason="not_found", request_id=None, session_id=None, entry=None
    )
    assert await connection.fetchval("SELECT count(*) FROM accepts") == 0


async def test_somebody_who_is_no_mechanic_finds_nothing(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)

    verdict = await accept(connection, booking.offer_id, booking.customer_id)

    assert said(verdict) == lost("not_found")
    assert await connection.fetchval("SELECT count(*) FROM accepts") == 0


async def test_an_older_round_has_its_own_reason_and_hers_who_gave_it_back_is_cancelled(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    first, other = await add_mechanic(connection), await add_mechanic(connection)
    await accept(connection, booking.offer_id, first)
    again = (await change(connection, store, booking.request_id, MechanicCancel(first))).booking

    assert said(await accept(connection, booking.offer_id, other)) == lost("taken")
    assert said(await accept(connection, booking.offer_id, first)) == lost("cancelled")
    assert said(await accept(connection, again.offer_id, first)) == lost("not_found")
    assert said(await accept(connection, again.offer_id, other)) == WON


async def test_a_request_that_ended_tells_why(connection: Connection, store: Store) -> None:
    mechanic_id = await add_mechanic(connection)
    gone = await book_and_open(connection, store)
    await change(connection, store, gone.request_id, Cancel())
    late = await book_and_open(connection, store)

    assert said(await accept(connection, gone.offer_id, mechanic_id)) == lost("cancelled")
    async with connection.transaction():
        await shift_clock(connection, POLICY.request_ttl_seconds)
        assert said(await accept(connection, late.offer_id, mechanic_id)) == lost("expired")


async def test_who_was_never_meant_is_told_the_same_whatever_became_of_it(
    connection: Connection, store: Store
) -> None:
    workshop_id = await add_workshop(connection)
    colleague, rival = (
        await add_mechanic(connection, workshop_id),
        await add_mechanic(connection, await add_workshop(connection)),
    )
    booking = await book_and_open(
        connection, store, routing_type="workshop_only", workshop_id=workshop_id
    )

    verdicts = [await accept(connection, booking.offer_id, rival)]
    await accept(connection, booking.offer_id, colleague)
    verdicts.append(await accept(connection, booking.offer_id, rival))
    await change(connection, store, booking.request_id, MechanicCancel(colleague))
    verdicts.append(await accept(connection, booking.offer_id, rival))

    assert [said(verdict) for verdict in verdicts] == [lost("not_found")] * 3


async def test_who_declined_cannot_take_it_after_all(connection: Connection, store: Store) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    facts = await candidate(connection, mechanic_id)
    decision = await change(
        connection, store, booking.request_id, Decline(facts, booking.offer_id, "far")
    )

    verdict = await accept(connection, booking.offer_id, mechanic_id)

    assert said(verdict) == lost("not_found")
    assert await read(connection, booking.request_id) == decision.booking
    assert await connection.fetchval("SELECT status FROM offers") == "declined"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE mechanics SET available = false WHERE id = $1", "unavailable"),
        ("UPDATE mechanics SET application_status = 'rejected' WHERE id = $1", "not_found"),
        ("UPDATE mechanics SET deleted_at = now() WHERE id = $1", "not_found"),
        ("UPDATE users SET disabled_at = now() WHERE id = $1", "not_found"),
    ],
)
async def test_an_accept_that_meets_a_change_of_the_mechanic_waits_for_it(
    pool: Pool, connection: Connection, store: Store, statement: str, reason: str
) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    async with pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(statement, mechanic_id)

        verdict = asyncio.create_task(accept(connection, booking.offer_id, mechanic_id))
        await until_blocked(pool, 1)
        await transaction.commit()

        assert said(await verdict) == lost(reason)


async def test_a_mechanic_whose_session_runs_is_busy(connection: Connection, store: Store) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    await occupy(connection, mechanic_id, mechanic_slot=1)
    await connection.execute(
        "UPDATE sessions SET status = 'active', started_at = now(), ends_at = now() "
        "WHERE mechanic_id = $1",
        mechanic_id,
    )

    assert (await candidate(connection, mechanic_id)).live_sessions == 1
    assert said(await accept(connection, booking.offer_id, mechanic_id)) == lost("busy")


async def test_a_lowered_capacity_counts_the_sessions_that_she_has(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    mechanic_id = await add_mechanic(connection)
    await occupy(connection, mechanic_id, mechanic_slot=2)

    one, two = replace(POLICY, mechanic_capacity=1), replace(POLICY, mechanic_capacity=2)

    assert said(await accept(connection, booking.offer_id, mechanic_id, policy=one)) == lost("busy")
    assert said(await accept(connection, booking.offer_id, mechanic_id, policy=two)) == WON
