"""Logging in and out, signing up, and whether a mechanic is there."""

from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import handshake, invites, people
from dispatch.core.types import Role
from dispatch.endpoints.area import CUSTOMER, EVERY_ROLE, Area, Asked, Path
from dispatch.errors import NotFound
from dispatch.pages import HTML, page


class LogIn(Struct, frozen=True):
    """`POST /api/auth/login`."""

    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class SignUp(Struct, frozen=True, kw_only=True):
    """`POST /api/customer/signup` and `/api/mechanic/signup`."""

    name: Annotated[str, Meta(max_length=200)]
    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class InvitedSignUp(SignUp, frozen=True, kw_only=True):
    """`POST /api/mechanic/workshop-signup`: the token of the link in the mail."""

    token: Annotated[str, Meta(max_length=200)]


class WorkshopSignUp(SignUp, frozen=True, kw_only=True):
    """`POST /api/workshop/signup`: its first member, and what everybody will see of the workshop,
    which is her own name and e-mail unless it is given."""

    workshop_name: Annotated[str, Meta(max_length=200)] | None = None
    workshop_email: Annotated[str, Meta(max_length=254)] | None = None


class WorkshopSignedUp(people.LoggedIn, frozen=True):
    """What a workshop's sign-up gives."""

    workshop_id: UUID


class Join(Struct, frozen=True):
    """The link in the mail."""

    token: Annotated[str, Meta(max_length=200)] = ""


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
                errors=("email_taken", "rate_limited"),
            ),
            Path(
                "POST",
                "/api/mechanic/signup",
                self.sign_up_mechanic,
                body=SignUp,
                answer=people.LoggedIn,
                status=201,
                errors=("email_taken", "rate_limited"),
            ),
            Path(
                "POST",
                "/api/mechanic/workshop-signup",
                self.sign_up_invited,
                body=InvitedSignUp,
                answer=people.LoggedIn,
                status=201,
                errors=("email_taken", "not_found", "rate_limited"),
            ),
            Path(
                "POST",
                "/api/workshop/signup",
                self.sign_up_workshop,
                body=WorkshopSignUp,
                answer=WorkshopSignedUp,
                status=201,
                errors=("email_taken", "rate_limited"),
            ),
            Path("GET", "/join", self.join, query=Join, media=HTML),
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
            node.pool,
            node.config.jwt_secret,
            node.rates,
            form.email,
            form.password,
            self._limited_address(asked.request),
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
        form: SignUp = self._new_form(asked)
        user_id = await people.sign_up_customer(
            self.node.pool, form.name, form.email, form.password
        )
        return self._token(user_id, Role.CUSTOMER)

    async def sign_up_mechanic(self, asked: Asked) -> people.LoggedIn:
        """A new independent mechanic, logged in; offers come once an admin has approved her."""
        form: SignUp = self._new_form(asked)
        user_id = await people.sign_up_mechanic(
            self.node.pool, form.name, form.email, form.password
        )
        return self._token(user_id, Role.MECHANIC)

    async def sign_up_invited(self, asked: Asked) -> people.LoggedIn:
        """A new mechanic of the workshop that invited her, approved and logged in (P3)."""
        form: InvitedSignUp = self._new_form(asked)
        user_id = await invites.sign_up(
            self.node.pool, form.token, form.name, form.email, form.password
        )
        return self._token(user_id, Role.MECHANIC)

    async def sign_up_workshop(self, asked: Asked) -> WorkshopSignedUp:
        """A new workshop and its first member, logged in; an admin must approve the workshop."""
        form: WorkshopSignUp = self._new_form(asked)
        new = await people.sign_up_workshop(
            self.node.pool,
            form.name,
            form.email,
            form.password,
            form.workshop_name,
            form.workshop_email,
        )
        first = self._token(new.user_id, Role.WORKSHOP)
        return WorkshopSignedUp(first.token, first.role, first.user_id, new.workshop_id)

    async def join(self, asked: Asked) -> Response:
        """Where the link of an invite leads: what to do with it. Opening it changes nothing."""
        wanted: Join = asked.query
        workshop = await invites.inviting_workshop(self.node.pool, wanted.token)
        if workshop is None:
            return page(
                "This invite is over",
                "It was used, withdrawn or replaced by a newer one, or it is too old. Ask your "
                "workshop for another.",
            )
        return page(
            f"{workshop} invites you",
            "Sign up as a mechanic of this workshop, with the address that the mail came to. You "
            "are asked for this page's address, which is the link in the mail: copy it before.",
            onward=("/mechanic", "Go on to the sign-up"),
        )

    def _new_form(self, asked: Asked) -> Any:
        """What somebody new sent, counted for where it comes from. Raises RateLimited."""
        self.node.rates.sign_up(self._limited_address(asked.request))
        return asked.body

    def _token(self, user_id: UUID, role: Role) -> people.LoggedIn:
        return people.first_token(self.node.config.jwt_secret, user_id, role)

    def _limited_address(self, request: Request) -> str | None:
        """Whom log-ins and sign-ups are counted for; None for this very machine."""
        peer = request.client.host if request.client else None
        forwarded_for = request.headers.getlist("x-forwarded-for")
        trusted = frozenset(self.node.config.trusted_proxies)
        return handshake.limited_address(peer, forwarded_for, trusted)

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
