"""What anybody may see of workshops, and what their members do."""

from typing import Annotated

from msgspec import Meta, Struct

from dispatch import invites, workshops
from dispatch.endpoints.area import WORKSHOP, Area, Asked, Path
from dispatch.errors import NotConfigured
from dispatch.exchange import Page
from dispatch.node import Node


class Invite(Struct, frozen=True):
    """`POST /api/workshop/invites`."""

    email: Annotated[str, Meta(max_length=254)]
    name: Annotated[str, Meta(max_length=200)] | None = None


class Workshops(Area):
    """Workshops, seen from outside and from within."""

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
            ),
            Path(
                "GET",
                "/api/workshop/mechanics",
                self.mechanics,
                roles=WORKSHOP,
                query=Page,
                answer=workshops.Panel,
            ),
            Path(
                "POST",
                "/api/workshop/invites",
                self.invite,
                roles=WORKSHOP,
                body=Invite,
                answer=invites.Invited,
                status=201,
                errors=("workshop_not_active", "email_taken", "rate_limited", "not_configured"),
            ),
            Path(
                "DELETE",
                "/api/workshop/invites/{id}",
                self.withdraw,
                roles=WORKSHOP,
                errors=("not_found",),
            ),
        ]

    async def directory(self, asked: Asked) -> workshops.DirectoryPage:
        """A page of the workshops that have somebody free now; for anybody, without a token."""
        part: Page = asked.query
        return await self._directory.page(part.limit, part.offset)

    async def mechanics(self, asked: Asked) -> workshops.Panel:
        """The mechanics of the caller's workshop, whether they are there, and its open invites."""
        part: Page = asked.query
        node = self.node
        return await workshops.panel(
            node.pool, node.presence, asked.caller.user_id, part.limit, part.offset
        )

    async def invite(self, asked: Asked) -> invites.Invited:
        """Invites a mechanic by e-mail to the caller's workshop (P3); an older invite is void."""
        form: Invite = asked.body
        node = self.node
        if node.mailer is None:
            raise NotConfigured("this server sends no mails: SMTP_URL is not set")
        invited = await invites.invite(
            node.pool, node.config.jwt_secret, asked.caller.user_id, form.email, form.name
        )
        node.outbox.wake()
        return invited

    async def withdraw(self, asked: Asked) -> None:
        """Voids an open invite of the caller's workshop."""
        await invites.withdraw(self.node.pool, asked.caller.user_id, asked.id)
