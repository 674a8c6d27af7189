"""uWebSockets through socketify: `python -m bench.peers.socketify_server PORT`.

Its own topics do the broadcasting, so that messages for one socket share a write. Imports nothing
of ours. Not typed: socketify is only in the venv of the peers.
"""

# mypy: disable-error-code="import-not-found"

import json
import sys
from typing import Any

from socketify import App, AppListenOptions, CompressOptions, OpCode

TOPIC = "offers"
app = App()


def opened(socket: Any) -> None:
    socket.subscribe(TOPIC)


def echoed(socket: Any, text: Any, opcode: Any) -> None:
    socket.send(text, opcode)


async def publish(response: Any, request: Any) -> None:
    text = await response.get_text()
    app.publish(TOPIC, text, OpCode.TEXT)
    response.end(json.dumps({"sockets": app.num_subscribers(TOPIC), "dropped": 0}))


app.ws(
    "/ws",
    {
        "compression": CompressOptions.DISABLED,
        "max_backpressure": 64 << 20,
        "open": opened,
        "message": echoed,
    },
)
app.post("/publish", publish)
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"))
app.run()
