"""The descriptions of everything that a client may say, made from the types in use."""

from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.responses import Response

from dispatch import asyncapi, handshake, openapi
from dispatch.endpoints.area import Area, Asked, Path
from dispatch.node import Node

OPENAPI: Final = "application/vnd.oai.openapi+json"
ASYNCAPI: Final = "application/vnd.aai.asyncapi+json"


class Documents(Area):
    """Descriptions of this server for machines."""

    def __init__(self, node: Node, others: Sequence[Area]) -> None:
        """`others` are all other areas: they are described here, and so is this one."""
        super().__init__(node)
        self._openapi = msgspec.json.encode(openapi.document([*others, self]))
        self._asyncapi = msgspec.json.encode(asyncapi.document())

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path("GET", "/openapi.json", self.openapi, media=OPENAPI),
            Path("GET", "/asyncapi.json", self.asyncapi, media=ASYNCAPI),
        ]

    async def openapi(self, asked: Asked) -> Response:
        """This description of all endpoints."""
        headers = handshake.JSON_HEADERS | {"content-type": OPENAPI}
        return Response(self._openapi, headers=headers)

    async def asyncapi(self, asked: Asked) -> Response:
        """The description of the websocket protocol."""
        headers = handshake.JSON_HEADERS | {"content-type": ASYNCAPI}
        return Response(self._asyncapi, headers=headers)
