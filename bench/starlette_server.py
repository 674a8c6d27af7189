"""What most people would write: Starlette on uvicorn, and a loop of `send_text`.

`python -m bench.starlette_server WS PORT`, where WS is one of uvicorn's own websocket
implementations. Keeps the contract of `candidates.BareServer`. Imports nothing of ours.
"""

import sys
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.config import WSProtocolType

sockets: set[WebSocket] = set()


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    sockets.add(socket)
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
    finally:
        sockets.discard(socket)


async def publish(request: Request) -> JSONResponse:
    text = (await request.body()).decode()
    count = len(sockets)
    for socket in list(sockets):
        await socket.send_text(text)
    return JSONResponse({"sockets": count, "dropped": 0})


app = Starlette(
    routes=[WebSocketRoute("/ws", websocket), Route("/publish", publish, methods=["POST"])]
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        ws=cast(WSProtocolType, sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws_per_message_deflate=False,
        backlog=4096,
        log_level="error",
        access_log=False,
    )
