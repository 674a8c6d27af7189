"""Logging in and out, signing up, and whether a mechanic is there."""

from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import people
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.errors import NotFound
from dispatch.exchange import body, fields, ok, path_id


class LogIn(Struct, frozen=True):
    """`POST /api/auth/login`."""

    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class SignUp(Struct, frozen=True):
    """`POST /api/customer/signup`."""

    name: Annotated[str, Meta(max_length=200)]
    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class People(Area):
    """Accounts."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("POST", "/api/auth/login", self.log_in),
            ("POST", "/api/auth/refresh", self.refresh),
            ("POST", "/api/auth/logout", self.log_out),
            ("POST", "/api/customer/signup", self.sign_up_customer),
            ("GET", "/api/mechanics/{id}/status", self.mechanic_status),
        ]

    async def log_in(self, request: Request) -> Response:
        """A token for an e-mail and a password."""
        form = await body(request, LogIn)
        node = self.node
        logged_in = await people.log_in(
            node.pool, node.config.jwt_secret, node.login_rate, form.email, form.password
        )
        return ok(logged_in)

    async def refresh(self, request: Request) -> Response:
        """A new token for a present one."""
        caller = await self.caller(request)
        return ok(people.refresh(self.node.config.jwt_secret, caller))

    async def log_out(self, request: Request) -> Response:
        """Revokes every token of the caller and closes her sockets on every node."""
        caller = await self.caller(request)
        epoch = await people.log_out(self.node.pool, caller.user_id)
        self.node.revoke(caller.user_id, epoch)
        return ok()

    async def sign_up_customer(self, request: Request) -> Response:
        """A new customer, logged in."""
        form = await body(request, SignUp)
        user_id = await people.sign_up_customer(
            self.node.pool, form.name, form.email, form.password
        )
        newcomer = Identity(user_id, Role.CUSTOMER, 0, 0.0)
        return ok(people.refresh(self.node.config.jwt_secret, newcomer), status=201)

    async def mechanic_status(self, request: Request) -> Response:
        """Whether a mechanic is there (F2)."""
        await self.caller(request, Role.CUSTOMER)
        try:
            mechanic_id = path_id(request)
        except NotFound:
            raise NotFound("this mechanic is gone", code="mechanic_gone") from None
        status = await self.node.mechanics.status(mechanic_id)
        return ok({"last_seen": None, **fields(status.frame()), "name": status.name})
