"""What tests of every kind share: the secrets they configure, and waiting without sleeping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from dispatch.children import wait_until

T = TypeVar("T")

JWT_SECRET = "a-secret-that-only-tests-know-0123456789"
STRIPE_SECRET_KEY = "sk_test_tests"
STRIPE_WEBHOOK_SECRET = "whsec_tests"

WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.01


@overload
async def eventually(
    condition: Callable[[], Awaitable[T | None]], timeout_seconds: float = WAIT_SECONDS
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T | None], timeout_seconds: float = WAIT_SECONDS
) -> T: ...
async def eventually(condition: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> Any:
    """Wait until the condition (plain or async) gives something true, and return it.

    Raises AssertionError with the last thing it gave when the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        given = condition()
        value = await given if inspect.isawaitable(given) else given
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_seconds} s"
        await asyncio.sleep(_POLL_SECONDS)


def eventually_blocking(
    condition: Callable[[], bool], timeout_seconds: float = WAIT_SECONDS
) -> None:
    """The same for tests without an event loop."""
    assert wait_until(condition, timeout_seconds), f"still not so after {timeout_seconds} s"
