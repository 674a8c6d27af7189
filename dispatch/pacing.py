"""Writing no faster than it is read.

One job: say whether sockets have much unread, and wait until they have not. Imports `hub`, for what
a socket is.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from dispatch.hub import Socket

UNREAD_BYTES: Final = 64 * 1024  # that nothing more is added to
_LOOK_SECONDS: Final = 0.02


def have_unread(sockets: Iterable[Socket]) -> bool:
    """Whether any of them has so much unread that more had better wait."""
    return any(socket.unread_bytes > UNREAD_BYTES for socket in sockets)


async def until_read(sockets: Iterable[Socket]) -> None:
    """A turn for everybody else, and until none of these has much unread.

    One that does not read at all is closed, so nobody waits for it for ever.
    """
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if not have_unread(sockets):
            return
