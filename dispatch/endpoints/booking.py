"""From the intake to the payment, and what a customer does with an open request."""

from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatch import checkout, customer_payments, people, sessions, webhooks
from dispatch.core import messages
from dispatch.core.types import RefundAs, Role
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import Page, body, ok, optional_body, path_id, query, raw_body
from dispatch.pages import page

MAX_WEBHOOK_BYTES: Final = 512 * 1024  # Stripe's events are larger than what clients may send
LOOK_AGAIN_SECONDS: Final = 2


class Waiver(Struct, frozen=True):
    """`POST /api/waiver/sign`."""

    intake_id: UUID
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(min_length=1, max_length=50)]


class Cancellation(Struct, frozen=True):
    """`POST /api/requests/{id}/cancel`, which needs no body."""

    refund_as: RefundAs = "money"


class ComingBack(Struct, frozen=True):
    """What Stripe adds to the address that it sends a customer back to."""

    session_id: Annotated[str, Meta(max_length=255)] | None = None


class Bookings(Area):
    """Intakes, waivers, checkouts, webhooks and requests."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("POST", "/api/intake/start", self.start_intake),
            ("POST", "/api/waiver/sign", self.sign_waiver),
            ("GET", "/api/checkout/create-session", self.create_checkout),
            ("POST", "/api/stripe/webhook", self.stripe_webhook),
            ("GET", "/checkout/success", self.checkout_success),
            ("GET", "/checkout/cancel", self.checkout_cancel),
            ("GET", "/api/customer/payments", self.payments),
            ("GET", "/api/requests/{id}", self.request),
            ("POST", "/api/requests/{id}/cancel", self.cancel_request),
            ("POST", "/api/requests/{id}/widen", self.widen_request),
        ]

    async def start_intake(self, request: Request) -> Response:
        """Stores a wish; a free plan is a session at once."""
        received_at = self.node.clock.now()
        caller = await self.caller(request, Role.CUSTOMER)
        form = await body(request, sessions.IntakeForm)
        return ok(await self.start(caller.user_id, form, received_at), status=201)

    async def sign_waiver(self, request: Request) -> Response:
        """Who, when, which version, from where (S5)."""
        caller = await self.caller(request, Role.CUSTOMER)
        form = await body(request, Waiver)
        name, address = people.checked_name(form.name), self.address(request)
        await sessions.sign_waiver(
            self.node.pool, caller.user_id, form.intake_id, name, form.version, address
        )
        return ok({"intake_id": form.intake_id})

    async def create_checkout(self, request: Request) -> Response:
        """To Stripe's hosted page; its address as JSON for who asks for JSON (C1)."""
        caller = await self.caller(request, Role.CUSTOMER)
        asked = query(request, checkout.CheckoutQuery)
        node = self.node
        url = await checkout.create_checkout(
            node.pool, node.stripe, node.config, caller.user_id, asked
        )
        if "application/json" in request.headers.get("accept", ""):
            return ok({"url": url})
        return RedirectResponse(url, status_code=303, headers={"cache-control": "no-store"})

    async def stripe_webhook(self, request: Request) -> Response:
        """200 after the commit (C2). What was booked is dispatched then."""
        node = self.node
        received_at = node.clock.now()
        raw = await raw_body(request, MAX_WEBHOOK_BYTES)
        signature = request.headers.get("stripe-signature")
        outcome = await webhooks.handle_webhook(
            node.pool, node.stripe, node.config, raw, signature, node.dispatcher.open_at_once
        )
        node.took(outcome, received_at)
        return ok()

    async def checkout_success(self, request: Request) -> Response:
        """Says what has become of the payment that somebody comes back from. Only Stripe's webhook
        books: this page knows what our rows say, and looks again while they wait for it."""
        came = query(request, ComingBack)
        payment = None
        if came.session_id:
            payment = await customer_payments.of_checkout(self.node.pool, came.session_id)
        if payment is None or payment.status in ("created", "expired", "failed"):
            text = f"{messages.PAYMENT_EXPECTED} Your booking starts as soon as it is."
            again = None if payment is None else LOOK_AGAIN_SECONDS
            return page("Thank you", text, refresh_seconds=again)
        title = "Thank you" if payment.status == "fulfilled" else "About your payment"
        return page(title, payment.message)

    async def checkout_cancel(self, request: Request) -> Response:
        """Says that nothing happened."""
        return page("Nothing was charged", "You left the payment page. You can begin again.")

    async def payments(self, request: Request) -> Response:
        """All that the caller has paid, and what has become of it."""
        caller = await self.caller(request, Role.CUSTOMER)
        part = query(request, Page)
        pool = self.node.pool
        return ok(
            await customer_payments.listing(
                pool, caller.user_id, limit=part.limit, offset=part.offset
            )
        )

    async def request(self, request: Request) -> Response:
        """The frame `request.status` of the customer's own request."""
        caller = await self.caller(request, Role.CUSTOMER)
        entry = await self.node.dispatcher.customer_entry(caller.user_id, path_id(request))
        return self.request_state(entry)

    async def cancel_request(self, request: Request) -> Response:
        """Before an accept; afterwards it is the end of the session."""
        caller = await self.caller(request, Role.CUSTOMER)
        form = await optional_body(request, Cancellation)
        entry = await self.node.dispatcher.cancel(caller.user_id, path_id(request), form.refund_as)
        return self.request_state(entry)

    async def widen_request(self, request: Request) -> Response:
        """A priority or head-start stage ends now."""
        caller = await self.caller(request, Role.CUSTOMER)
        entry = await self.node.dispatcher.widen(caller.user_id, path_id(request))
        return self.request_state(entry)
