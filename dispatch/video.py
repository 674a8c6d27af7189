"""Rooms for video at a LiveKit server: who may enter, and closing them (S8).

One job: sign tokens for the two in a session, and ask LiveKit to close the room at its end. A room
is there as soon as somebody enters it; each round of a booking has its own, so that a mechanic who
gave it back cannot enter that of who came after. What LiveKit wants is by its published shapes:
tokens are JWTs with a `video` grant, `DeleteRoom` is a Twirp call. Imports `config`, `errors`,
`hints`, `protocol` and `queries`, PyJWT, and aiohttp late.

It fails with `Conflict` (`no_video`, `not_open`, `session_ended`); a delivery with `Unavailable`,
or with `Refused` where LiveKit will refuse it again.
"""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

import jwt
from msgspec import Struct

from dispatch import queries
from dispatch.config import Config
from dispatch.core.types import Booking, SessionStatus
from dispatch.database import Connection
from dispatch.errors import Conflict, Refused, Unavailable
from dispatch.hints import Entry
from dispatch.protocol import timestamp

if TYPE_CHECKING:
    import aiohttp

_SQL: Final = queries.load("video")

WITH_VIDEO: Final = frozenset({"video", "diagnostic"})
AT_LEAST: Final = timedelta(minutes=1)  # a token is good for: it takes a moment to enter
CALL_SECONDS: Final = 10.0
_CALL_TOKEN_SECONDS: Final = 60
_EARLY_SECONDS: Final = 10  # clocks differ


class VideoToken(Struct, frozen=True):
    """What a client enters its room with, until `expires_at`."""

    url: str
    room: str
    token: str
    expires_at: str


def room_of(booking: Booking) -> str:
    """The name of the room of the booking's present round."""
    return f"{booking.session_id}-{booking.generation}"


async def queue_close(connection: Connection, booking: Booking) -> bool:
    """In the transaction that ends the booking's round: its room is to be closed, if it may have
    one. Whether that was queued."""
    if booking.session_type not in WITH_VIDEO:
        return False
    await connection.execute(_SQL["queue_close"], room_of(booking))
    return True


class Video:
    """One LiveKit server."""

    def __init__(self, url: str, api_key: str, api_secret: str) -> None:
        """`url` as clients connect to it, by whichever of ws, wss, http and https."""
        self._url = url
        self._key = api_key
        self._secret = api_secret
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """The one that is configured, if any."""
        if not config.livekit_url:
            return None
        return cls(config.livekit_url, config.livekit_api_key, config.livekit_api_secret)

    def token(self, entry: Entry, user_id: UUID, now: datetime) -> VideoToken:
        """For a participant, until the session's end; before it began, until it must have."""
        booking = entry.booking
        if booking.session_type not in WITH_VIDEO:
            raise Conflict("no_video", "this session is a chat")
        if booking.session_status in (SessionStatus.SCHEDULED, SessionStatus.PENDING):
            raise Conflict("not_open", "nobody has this session yet")
        until = booking.ends_at or booking.join_by
        if booking.session_status not in (SessionStatus.ACCEPTED, SessionStatus.ACTIVE):
            raise Conflict("session_ended", "this session has ended")
        assert until is not None, "an accepted session has a join deadline, an active one an end"
        expires_at = max(until, now + AT_LEAST)
        is_customer = user_id == booking.customer_id
        name = entry.display.customer_name if is_customer else entry.display.mechanic_name
        room = room_of(booking)
        grant = {
            "roomJoin": True,
            "room": room,
            "canPublish": True,
            "canSubscribe": True,
            "canPublishData": True,
        }
        token = self._sign(grant, now, expires_at, {"sub": str(user_id), "name": name or ""})
        return VideoToken(_scheme(self._url, "ws"), room, token, timestamp(expires_at))

    async def close_room(self, payload: dict[str, Any], now: datetime) -> None:
        """Delivers an effect `room`: everybody is put out. A room that is not there is closed."""
        import aiohttp

        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
            self._http = aiohttp.ClientSession(timeout=timeout)
        until = now + timedelta(seconds=_CALL_TOKEN_SECONDS)
        token = self._sign({"roomCreate": True}, now, until, {})
        url = _scheme(self._url, "http").rstrip("/") + "/twirp/livekit.RoomService/DeleteRoom"
        headers = {"authorization": f"Bearer {token}"}
        try:
            async with self._http.post(
                url, json={"room": payload["room"]}, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"LiveKit did not answer: {type(error).__name__}") from None
        if status in (408, 429) or status >= 500:
            raise Unavailable(f"LiveKit answered {status}")
        if status not in (200, 404):
            raise Refused(f"LiveKit answered {status}")

    async def close(self) -> None:
        """Lets go of the connections."""
        if self._http is not None:
            await self._http.close()

    def _sign(
        self, grant: dict[str, Any], now: datetime, until: datetime, who: dict[str, str]
    ) -> str:
        claims = {
            "iss": self._key,
            "nbf": int(now.timestamp()) - _EARLY_SECONDS,
            "exp": int(until.timestamp()),
            "video": grant,
            **who,
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")


def _scheme(url: str, plain: str) -> str:
    """The same address by ws and wss, or by http and https."""
    scheme, _, rest = url.partition("://")
    return f"{plain}{'s' if scheme in ('wss', 'https') else ''}://{rest}"
