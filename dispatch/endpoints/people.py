"""Logging in and out, signing up, and whether a mechanic is there."""

from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from dispatch import people
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.endpoints.area import CUSTOMER, EVERY_ROLE, Area, Asked, Path
from dispatch.errors import NotFound


class LogIn(Struct, frozen=True):
    """`POST /api/auth/login`."""

    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class SignUp(Struct, frozen=True):
    """`POST /api/customer/signup`."""

    name: Annotated[str, Meta(max_length=200)]
    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class MechanicStatus(Struct, frozen=True, kw_only=True):
    """A mechanic as a customer may see her before booking."""

    mechanic_id: UUID
    name: str
    presence: Literal["online", "offline", "unknown"]
    is_online: bool
    available: bool
    reachable_by_push: bool
    last_seen: str | None


class People(Area):
    """Accounts."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "POST",
                "/api/auth/login",
                self.log_in,
                body=LogIn,
                answer=people.LoggedIn,
                errors=("not_authenticated", "rate_limited"),
            ),
            Path(
                "POST",
                "/api/auth/refresh",
                self.refresh,
                roles=EVERY_ROLE,
                answer=people.LoggedIn,
            ),
            Path("POST", "/api/auth/logout", self.log_out, roles=EVERY_ROLE),
            Path(
                "POST",
                "/api/customer/signup",
                self.sign_up_customer,
                body=SignUp,
                answer=people.LoggedIn,
                status=201,
                errors=("email_taken",),
            ),
            Path(
                "GET",
                "/api/mechanics/{id}/status",
                self.mechanic_status,
                roles=CUSTOMER,
                answer=MechanicStatus,
                errors=("mechanic_gone",),
            ),
        ]

    async def log_in(self, asked: Asked) -> people.LoggedIn:
        """A token for an e-mail and a password."""
        form: LogIn = asked.body
        node = self.node
        return await people.log_in(
            node.pool, node.config.jwt_secret, node.login_rate, form.email, form.password
        )

    async def refresh(self, asked: Asked) -> people.LoggedIn:
        """A new token for a present one."""
        return people.refresh(self.node.config.jwt_secret, asked.caller)

    async def log_out(self, asked: Asked) -> None:
        """Revokes every token of the caller and closes her sockets on every node."""
        user_id = asked.caller.user_id
        epoch = await people.log_out(self.node.pool, user_id)
        self.node.revoke(user_id, epoch)

    async def sign_up_customer(self, asked: Asked) -> people.LoggedIn:
        """A new customer, logged in."""
        form: SignUp = asked.body
        user_id = await people.sign_up_customer(
            self.node.pool, form.name, form.email, form.password
        )
        newcomer = Identity(user_id, Role.CUSTOMER, 0, 0.0)
        return people.refresh(self.node.config.jwt_secret, newcomer)

    async def mechanic_status(self, asked: Asked) -> MechanicStatus:
        """Whether a mechanic is there (F2)."""
        try:
            mechanic_id = asked.id
        except NotFound:
            raise NotFound("this mechanic is gone", code="mechanic_gone") from None
        status = await self.node.mechanics.status(mechanic_id)
        frame = status.frame()
        return MechanicStatus(
            mechanic_id=frame.mechanic_id,
            name=status.name,
            presence=frame.presence,
            is_online=frame.is_online,
            available=frame.available,
            reachable_by_push=frame.reachable_by_push,
            last_seen=frame.last_seen,
        )
