"""`websockets` and its `broadcast()`: `python -m bench.peers.websockets_server PORT PUBLISH_PORT`.

Imports `publishing`; on uvloop, as ours is.
"""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.peers.publishing import publish_on


async def main(port: int, publish_port: int) -> None:
    sockets: set[ServerConnection] = set()

    async def echo(socket: ServerConnection) -> None:
        sockets.add(socket)
        try:
            async for message in socket:
                await socket.send(message)
        finally:
            sockets.discard(socket)

    def to_all(body: bytes) -> int:
        broadcast(sockets, body.decode())
        return len(sockets)

    await publish_on(publish_port, to_all)
    async with serve(echo, "127.0.0.1", port, compression=None, backlog=4096):
        await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
