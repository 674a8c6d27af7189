"""The session itself: its two enter and leave it, talk in it, and write about it."""

from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from starlette.responses import Response

from dispatch import frames, reviews
from dispatch.auth import Identity
from dispatch.endpoints.area import CUSTOMER, MECHANIC, PARTICIPANTS, Area, Asked, Path
from dispatch.errors import NotConfigured
from dispatch.exchange import ok
from dispatch.protocol import (
    DEFAULT_HISTORY,
    ChatMessage,
    ChatMessages,
    HistoryLimit,
    Seq,
    SessionState,
)
from dispatch.reviews import Rating, SessionDetails, Summary
from dispatch.video import VideoToken

CANNOT_JOIN: Final = ("already_joined", "not_open", "session_ended", "waiver_required")


class SessionRef(Struct, frozen=True):
    """A body that names a session."""

    session_id: UUID


class NewMessage(Struct, frozen=True):
    """`POST /api/sessions/{id}/messages`: more than 4000 characters are `too_long`."""

    client_message_id: UUID
    body: Annotated[str, Meta(min_length=1)]


class History(Struct, frozen=True):
    """Which part of what was said: so much after a `seq`."""

    after: Seq = 0
    limit: HistoryLimit = DEFAULT_HISTORY


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
                answer=SessionDetails,
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
            Path(
                "GET",
                "/api/sessions/{id}/messages",
                self.messages,
                roles=PARTICIPANTS,
                query=History,
                answer=ChatMessages,
            ),
            Path(
                "POST",
                "/api/sessions/{id}/messages",
                self.say,
                roles=PARTICIPANTS,
                body=NewMessage,
                answer=ChatMessage,
                status=201,
                also=(200,),
                errors=("too_long", "not_open", "session_ended", "rate_limited"),
            ),
            Path(
                "POST",
                "/api/sessions/{id}/video-token",
                self.video_token,
                roles=PARTICIPANTS,
                answer=VideoToken,
                errors=("no_video", "not_open", "session_ended", "not_configured"),
            ),
            Path(
                "PUT",
                "/api/sessions/{id}/summary",
                self.summarize,
                roles=MECHANIC,
                body=Summary,
                answer=SessionDetails,
                errors=("not_started",),
            ),
            Path(
                "POST",
                "/api/sessions/{id}/rating",
                self.rate,
                roles=CUSTOMER,
                body=Rating,
                answer=SessionDetails,
                status=201,
                errors=("not_completed", "already_rated"),
            ),
        ]

    async def session(self, asked: Asked) -> SessionDetails:
        """The frame `session.status` for a participant, with what is written about the session."""
        return await self._details(asked)

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

    async def messages(self, asked: Asked) -> ChatMessages:
        """What was said, in order; for participants, also after the end."""
        part: History = asked.query
        return await self.node.chats.history(
            asked.caller.user_id, asked.id, after=part.after, limit=part.limit
        )

    async def say(self, asked: Asked) -> Response:
        """Says something; with a `client_message_id` that was sent before it is that message."""
        form: NewMessage = asked.body
        message, is_new = await self.node.chats.say(
            asked.caller.user_id, asked.id, form.client_message_id, form.body
        )
        return ok(frames.chat_message(message), status=201 if is_new else 200)

    async def video_token(self, asked: Asked) -> VideoToken:
        """What a participant enters the session's video room with, while the session lives."""
        node, caller = self.node, asked.caller
        entry = await node.dispatcher.participant_entry(caller.user_id, asked.id)
        if node.video is None:
            raise NotConfigured("there is no video here")
        return node.video.token(entry, caller.user_id, node.clock.now())

    async def summarize(self, asked: Asked) -> SessionDetails:
        """Writes the mechanic's summary, which both read, and her own notes."""
        await reviews.summarize(self.node.pool, asked.caller.user_id, asked.id, asked.body)
        return await self._details(asked)

    async def rate(self, asked: Asked) -> SessionDetails:
        """Rates a completed session, once."""
        await reviews.rate(self.node.pool, asked.caller.user_id, asked.id, asked.body)
        return await self._details(asked)

    async def _details(self, asked: Asked) -> SessionDetails:
        caller = asked.caller
        entry = await self.node.dispatcher.participant_entry(caller.user_id, asked.id)
        state = self.session_state(entry, caller)
        return await reviews.details(self.node.pool, entry, state, caller.role)

    async def _join(self, caller: Identity, session_id: UUID) -> SessionState:
        entry = await self.node.dispatcher.join(caller.user_id, caller.role, session_id)
        return self.session_state(entry, caller)
