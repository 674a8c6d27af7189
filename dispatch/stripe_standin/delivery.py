"""Webhooks: every event is owed to one URL until it takes it.

Its one job: deliver what the ledger says is due, signed, in parallel, and try again later and
later when the receiver is away or does not answer 2xx. How often and how late is for the ledger's
`schedule` to say. Imports `ledger` and aiohttp. A delivery that was under way when the process died
is made again: at least once, in no order, as at Stripe.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Callable

import aiohttp

from .ledger import Delivery, Ledger

log = logging.getLogger(__name__)

CONCURRENCY = 16
ATTEMPT_TIMEOUT_SECONDS = 10.0


def signature_header(body: bytes, secret: str, timestamp: int) -> str:
    """`t=…,v1=…`, HMAC-SHA256 over `timestamp.body`: https://docs.stripe.com/webhooks/signature.

    Computed here because importing stripe takes longer than starting all of the stand-in.
    """
    signed = b"%d.%b" % (timestamp, body)
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


class Deliverer:
    """Delivers from `run()`; `wake()` it after a commit that owes events.

    An attempt that fails is made again after `first_retry_seconds`, then twice that, and so on;
    after `attempts` attempts it is given up.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        url: str,
        secret: str,
        now: Callable[[], float],
        first_retry_seconds: float,
        attempts: int,
    ) -> None:
        self._ledger = ledger
        self._url = url
        self._secret = secret
        self._now = now
        self._first_retry_seconds = first_retry_seconds
        self._attempts = attempts
        self._woken = asyncio.Event()
        self._free = CONCURRENCY

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with _http() as http, asyncio.TaskGroup() as attempts:
            while True:
                self._woken.clear()
                with self._ledger.transaction():
                    due = self._ledger.claim_deliveries(self._now(), self._room())
                for delivery in due:
                    self._free -= 1
                    attempts.create_task(self._attempt(http, delivery))
                await self._until_due()

    def _room(self) -> int:
        """How many more may be under way; none while they are held back."""
        return 0 if self._ledger.schedule.settings.held else self._free

    async def _until_due(self) -> None:
        next_due = self._ledger.next_due() if self._room() else None
        wait_seconds = None if next_due is None else max(next_due - self._now(), 0.0)
        # Not wait_for: in Python 3.11 it can swallow a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await self._woken.wait()

    async def _attempt(self, http: aiohttp.ClientSession, delivery: Delivery) -> None:
        outcome = await self._post(http, delivery.body)
        now = self._now()
        if 200 <= outcome < 300:
            state, due_at = "delivered", now
        elif delivery.attempts >= self._attempts:
            state, due_at = "given_up", now
            log.warning("event %s given up after %d attempts", delivery.event_id, delivery.attempts)
        else:
            state = "waiting"
            due_at = now + self._first_retry_seconds * 2 ** (delivery.attempts - 1)
        with self._ledger.transaction():
            self._ledger.end_attempt(delivery, state, due_at=due_at)
        self._free += 1
        self.wake()

    async def again(self, body: bytes, times: int) -> list[int]:
        """Deliver the same bytes `times` times at once; the status of each, 0 for no answer."""
        async with _http(limit=times) as http:
            return list(await asyncio.gather(*(self._post(http, body) for _ in range(times))))

    async def _post(self, http: aiohttp.ClientSession, body: bytes) -> int:
        """The status that the receiver answered, 0 when it did not."""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature_header(body, self._secret, int(self._now())),
        }
        try:
            async with http.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("webhook not delivered: %r", error)
            return 0


def _http(limit: int = CONCURRENCY) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit),
        timeout=aiohttp.ClientTimeout(total=ATTEMPT_TIMEOUT_SECONDS),
        headers={"User-Agent": "Stripe stand-in (local)"},
    )
