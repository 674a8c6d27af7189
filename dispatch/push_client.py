"""One message to one device, by way of the push service that its browser chose (RFC 8030).

One job: encrypt, sign, send, and say what became of it as a value. Nothing raises but a bug: a push
service that is away, hangs or answers nonsense is an `Answer` too. What it answers is not read
beyond the status and Retry-After, redirects are not followed, and `push_guard` says where a message
may go. Imports `push_guard`, `push_crypto`, `config` and `errors`, and aiohttp late. No message
and no log shows more of an endpoint than its host: who knows an endpoint may use it.
"""

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self
from uuid import UUID

from msgspec import Struct

from dispatch.board import bounded_put
from dispatch.config import Config
from dispatch.errors import Unavailable
from dispatch.push_crypto import Reader, Vapid, encrypt
from dispatch.push_guard import EndpointRefused, Guard, LookUp, look_up

if TYPE_CHECKING:
    import aiohttp

SEND_SECONDS: Final = 10.0
UNREAD_BYTES: Final = 1024  # of an answer that nobody reads, kept at most a few times over

SILENT_TIMES: Final = 3
SILENT_SECONDS: Final = 20.0
REMEMBERED_HOSTS: Final = 1000

_GONE: Final = (404, 410)
# Too early, too many, too slow; Microsoft's service says 406 where it means 429.
_LATER: Final = (406, 408, 425, 429)


class Device(Struct, frozen=True):
    """A subscription as it is stored."""

    id: UUID
    endpoint: str
    p256dh: str
    auth: str


class Message(Struct, frozen=True):
    """What a device is told: at most 3993 bytes, of use for so long.

    Of messages of one `topic` (at most 32 characters of base64url) a push service keeps the last.
    """

    body: bytes
    ttl_seconds: int
    topic: str


class Answer(Struct, frozen=True):
    """What became of a message.

    `delivered`: the push service took it. `gone`: there is no such subscription any more. `later`:
    try again, not before `retry_after_seconds`. `refused`: trying again is useless. `why` is for
    people, without a secret.
    """

    fate: Literal["delivered", "gone", "later", "refused"]
    why: str
    retry_after_seconds: float = 0.0


class Silence(NamedTuple):
    """A push service that did not answer so often in a row, and until when it is left alone."""

    times: int
    until: float


class WebPush:
    """Our side of web push, for one event loop; `close()` it at the end."""

    def __init__(
        self,
        private_key: str,
        subject: str,
        trusted_origins: tuple[str, ...] = (),
        look_up: LookUp = look_up,
    ) -> None:
        """`private_key` and `subject` are VAPID's; `trusted_origins` are exempt from the guard."""
        self.guard: Final = Guard(trusted_origins, look_up)
        self._vapid = Vapid(private_key, subject)
        self._session: aiohttp.ClientSession | None = None
        self._silent: dict[str, Silence] = {}

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """As configured; None where web push is not."""
        if not config.web_push:
            return None
        return cls(config.vapid_private_key, config.vapid_subject, config.push_trusted_origins)

    @property
    def application_server_key(self) -> str:
        """What a browser must be given to subscribe: our public key, in base64url."""
        return self._vapid.public_key

    async def close(self) -> None:
        """Ends the connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, device: Device, message: Message) -> Answer:
        """Sends one message. Encrypting and signing it holds the loop for 0.2 ms."""
        import aiohttp
        from yarl import URL

        try:
            origin = self.guard.check_form(device.endpoint)
            silence = self._silent.get(origin.host)
            if silence is not None and silence.times >= SILENT_TIMES:
                left_seconds = silence.until - time.monotonic()
                if left_seconds > 0:
                    return Answer("later", f"{origin.host} is silent", left_seconds)
            async with self._open_session().post(
                # As it came: another spelling of the same is another endpoint to some services.
                URL(device.endpoint, encoded=True),
                data=encrypt(message.body, Reader.parse(device.p256dh, device.auth)),
                headers={
                    "Authorization": self._vapid.authorization(origin.url, time.time()),
                    "Content-Encoding": "aes128gcm",
                    "Content-Type": "application/octet-stream",
                    "TTL": str(message.ttl_seconds),
                    "Topic": message.topic,
                    "Urgency": "high",
                },
                allow_redirects=False,
            ) as response:
                self._silent.pop(origin.host, None)
                return _answer(origin.host, response.status, response.headers.get("Retry-After"))
        except EndpointRefused as refused:
            return Answer("refused", refused.message)
        except Unavailable as away:
            return Answer("later", away.message)
        except TimeoutError:
            self._note_silence(origin.host)
            return Answer("later", f"{origin.host} does not answer")
        except (aiohttp.ClientError, OSError) as error:
            return Answer("later", f"{origin.host} does not answer ({type(error).__name__})")

    def _note_silence(self, host: str) -> None:
        """It did not answer in time; after a few times in a row it is left alone for a while, so
        that those who answer do not wait behind it."""
        before = self._silent.get(host)
        times = 1 if before is None else before.times + 1
        silence = Silence(times, time.monotonic() + SILENT_SECONDS)
        bounded_put(self._silent, host, silence, REMEMBERED_HOSTS)

    def _open_session(self) -> "aiohttp.ClientSession":
        """One for all push services: their connections are used again. Nothing else is kept."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self.guard.connector(),
                timeout=aiohttp.ClientTimeout(total=SEND_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "dispatch", "Accept-Encoding": "identity"},
                auto_decompress=False,
                read_bufsize=UNREAD_BYTES,
            )
        return self._session


def _answer(host: str, status: int, retry_after: str | None) -> Answer:
    """What a status means (RFC 8030, section 5), and to whom it may be said."""
    why = f"{host} answers {status}"
    if 200 <= status < 300:
        return Answer("delivered", why)
    if status in _GONE:
        return Answer("gone", why)
    if status in _LATER or status >= 500:
        return Answer("later", why, retry_after_seconds(retry_after, time.time()))
    return Answer("refused", why)  # a redirect, too: it may lead anywhere


def retry_after_seconds(header: str | None, now: float) -> float:
    """How long a Retry-After asks for (RFC 9110, section 10.2.3); 0 for none and for nonsense."""
    if header is None:
        return 0.0
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0
