"""Sessions of two for the tests of what is said and written in them, made as rows."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from dispatch.core.types import Booking, Due, End, Join, Role
from dispatch.database import Connection, Pool
from dispatch.store import Store
from tests.integration.living import Client
from tests.integration.rows import accept, add_mechanic, book_and_open, change


@dataclass(frozen=True)
class Talk:
    """A session that a mechanic has won."""

    connection: Connection
    store: Store
    request_id: UUID
    session_id: UUID
    customer_id: UUID
    mechanic_id: UUID

    async def starts(self) -> None:
        """Both join: its minutes run."""
        await self._do(Join(self.customer_id, Role.CUSTOMER))
        await self._do(Join(self.mechanic_id, Role.MECHANIC))

    async def ends(self) -> None:
        """The customer ends it."""
        await self._do(End(self.customer_id))

    async def is_due(self) -> None:
        """What is due of it happens."""
        await self._do(Due())

    async def _do(self, event: Join | End | Due) -> None:
        await change(self.connection, self.store, self.request_id, event)

    async def bodies(self) -> list[tuple[int, str]]:
        """Everything that is stored of it, in order."""
        rows = await self.connection.fetch(
            "SELECT seq, body FROM chat_messages WHERE session_id = $1 ORDER BY seq",
            self.session_id,
        )
        return [(row["seq"], row["body"]) for row in rows]


async def accepted(
    connection: Connection, pool: Pool, mechanic_id: UUID | None = None, **wish: object
) -> Talk:
    """A booking that this mechanic, or a new one, has accepted."""
    store = Store(pool)
    booking = await book_and_open(connection, store, **wish)
    return await _accepted(connection, store, booking, mechanic_id)


async def _accepted(
    connection: Connection, store: Store, booking: Booking, mechanic_id: UUID | None
) -> Talk:
    mechanic_id = mechanic_id or await add_mechanic(connection)
    verdict = await accept(connection, booking.offer_id, mechanic_id)
    assert verdict.won, verdict
    return Talk(
        connection,
        store,
        booking.request_id,
        booking.session_id,
        booking.customer_id,
        mechanic_id,
    )


async def active(
    connection: Connection, pool: Pool, mechanic_id: UUID | None = None, **wish: object
) -> Talk:
    """The same, with both in it."""
    talk = await accepted(connection, pool, mechanic_id, **wish)
    await talk.starts()
    return talk


async def say(client: Client, talk: Talk, body: str, client_message_id: UUID | None = None) -> str:
    """Says it, without waiting for the answer; the id that the client gave it."""
    client_message_id = client_message_id or uuid4()
    await client.send(
        "chat.send",
        session_id=talk.session_id,
        client_message_id=client_message_id,
        body=body,
        id=str(client_message_id),
    )
    return str(client_message_id)


def heard(client: Client) -> list[tuple[int, str]]:
    """Every message that came to this device, in the order in which it came."""
    return [(frame["seq"], frame["body"]) for frame in client.of("chat.message")]
