"""What anybody may see of workshops."""

from dispatch import workshops
from dispatch.endpoints.area import Area, Asked, Path
from dispatch.exchange import Page
from dispatch.node import Node


class Workshops(Area):
    """Workshops, seen from outside."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._directory = workshops.Directory(node.pool, node.config.mechanic_capacity)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/workshops/directory",
                self.directory,
                query=Page,
                answer=workshops.DirectoryPage,
            )
        ]

    async def directory(self, asked: Asked) -> workshops.DirectoryPage:
        """A page of the workshops that have somebody free now; for anybody, without a token."""
        part: Page = asked.query
        return await self._directory.page(part.limit, part.offset)
