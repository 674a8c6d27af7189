"""What anybody may see of workshops."""

from starlette.requests import Request
from starlette.responses import Response

from dispatch import workshops
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import Page, ok, query
from dispatch.node import Node


class Workshops(Area):
    """Workshops, seen from outside."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._directory = workshops.Directory(node.pool, node.config.mechanic_capacity)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [("GET", "/api/workshops/directory", self.directory)]

    async def directory(self, request: Request) -> Response:
        """A page of the workshops that have somebody free now; for anybody, without a token."""
        part = query(request, Page)
        return ok(await self._directory.page(part.limit, part.offset))
