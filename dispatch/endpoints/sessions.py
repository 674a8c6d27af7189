"""The session itself: who takes part enters, reads and leaves it."""

from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import body, path_id


class SessionRef(Struct, frozen=True):
    """A body that names a session."""

    session_id: UUID


class Sessions(Area):
    """Sessions of two participants."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/sessions/{id}", self.session),
            ("POST", "/api/sessions/{id}/join", self.join_session),
            ("POST", "/api/admin/sessions/join", self.join_named_session),
            ("POST", "/api/sessions/{id}/end", self.end_session),
        ]

    async def session(self, request: Request) -> Response:
        """The frame `session.status` for a participant."""
        caller = await self.caller(request, Role.CUSTOMER, Role.MECHANIC)
        entry = await self.node.dispatcher.participant_entry(caller.user_id, path_id(request))
        return self.session_state(entry, caller)

    async def join_session(self, request: Request) -> Response:
        """Enters a session; a mechanic on a pending one accepts and joins."""
        caller = await self.caller(request, Role.CUSTOMER, Role.MECHANIC)
        return await self._join(caller, path_id(request))

    async def join_named_session(self, request: Request) -> Response:
        """The same with the session in the body."""
        caller = await self.caller(request, Role.CUSTOMER, Role.MECHANIC)
        return await self._join(caller, (await body(request, SessionRef)).session_id)

    async def end_session(self, request: Request) -> Response:
        """Leaves a session for good; idempotent."""
        caller = await self.caller(request, Role.CUSTOMER, Role.MECHANIC)
        entry = await self.node.dispatcher.end(caller.user_id, path_id(request))
        return self.session_state(entry, caller)

    async def _join(self, caller: Identity, session_id: UUID) -> Response:
        entry = await self.node.dispatcher.join(caller.user_id, caller.role, session_id)
        return self.session_state(entry, caller)
