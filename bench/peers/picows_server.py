"""picows on uvloop: `python -m bench.peers.picows_server PORT PUBLISH_PORT`.

Imports `publishing`. Not typed: picows is only in the venv of the peers.
"""

# mypy: disable-error-code="import-not-found,misc"

import asyncio
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.peers.publishing import publish_on

sockets: set[WSTransport] = set()


class Echo(WSListener):
    """Sends every text back."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        sockets.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        sockets.discard(transport)


def to_all(body: bytes) -> int:
    for socket in sockets:
        socket.send(WSMsgType.TEXT, body)
    return len(sockets)


def listener(request: WSUpgradeRequest) -> Echo:
    return Echo()


async def main(port: int, publish_port: int) -> None:
    await publish_on(publish_port, to_all)
    server = await ws_create_server(listener, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
