"""A port that takes `POST /publish`, for libraries whose own port takes no body.

Imports nothing of ours.
"""

import asyncio
import json
import re
from collections.abc import Callable

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


async def publish_on(port: int, broadcast: Callable[[bytes], int]) -> asyncio.Server:
    """Gives each body to `broadcast`, which says to how many it went."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        said = json.dumps({"sockets": broadcast(body), "dropped": 0}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
