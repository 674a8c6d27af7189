"""The session itself: who takes part enters, reads and leaves it."""

from typing import Final
from uuid import UUID

from msgspec import Struct

from dispatch.auth import Identity
from dispatch.endpoints.area import PARTICIPANTS, Area, Asked, Path
from dispatch.protocol import SessionState

CANNOT_JOIN: Final = ("already_joined", "not_open", "session_ended", "waiver_required")


class SessionRef(Struct, frozen=True):
    """A body that names a session."""

    session_id: UUID


class Sessions(Area):
    """Sessions of two participants."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/sessions/{id}",
                self.session,
                roles=PARTICIPANTS,
                answer=SessionState,
            ),
            Path(
                "POST",
                "/api/sessions/{id}/join",
                self.join_session,
                roles=PARTICIPANTS,
                answer=SessionState,
                errors=CANNOT_JOIN,
            ),
            Path(
                "POST",
                "/api/admin/sessions/join",
                self.join_named_session,
                roles=PARTICIPANTS,
                body=SessionRef,
                answer=SessionState,
                errors=("not_found", *CANNOT_JOIN),
            ),
            Path(
                "POST",
                "/api/sessions/{id}/end",
                self.end_session,
                roles=PARTICIPANTS,
                answer=SessionState,
                errors=("not_open",),
            ),
        ]

    async def session(self, asked: Asked) -> SessionState:
        """The frame `session.status` for a participant."""
        caller = asked.caller
        entry = await self.node.dispatcher.participant_entry(caller.user_id, asked.id)
        return self.session_state(entry, caller)

    async def join_session(self, asked: Asked) -> SessionState:
        """Enters a session; a mechanic on a pending one accepts and joins."""
        return await self._join(asked.caller, asked.id)

    async def join_named_session(self, asked: Asked) -> SessionState:
        """Enters the session that the body names; a mechanic on a pending one accepts and joins."""
        wanted: SessionRef = asked.body
        return await self._join(asked.caller, wanted.session_id)

    async def end_session(self, asked: Asked) -> SessionState:
        """Leaves a session for good; idempotent."""
        caller = asked.caller
        entry = await self.node.dispatcher.end(caller.user_id, asked.id)
        return self.session_state(entry, caller)

    async def _join(self, caller: Identity, session_id: UUID) -> SessionState:
        entry = await self.node.dispatcher.join(caller.user_id, caller.role, session_id)
        return self.session_state(entry, caller)
