"""From the intake to the payment, and what a customer does with an open request."""

from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from starlette.responses import RedirectResponse, Response

from dispatch import checkout, customer_payments, people, sessions, webhooks
from dispatch.core import messages
from dispatch.core.types import RefundAs
from dispatch.endpoints.area import CUSTOMER, Area, Asked, IntakeStarted, Path
from dispatch.exchange import Page, ok
from dispatch.pages import HTML, page
from dispatch.protocol import PaymentState, RequestState

MAX_WEBHOOK_BYTES: Final = 512 * 1024  # Stripe's events are larger than what clients may send
LOOK_AGAIN_SECONDS: Final = 2
TO_THE_BOOKING: Final = ("/customer", "Go to your booking")


class Waiver(Struct, frozen=True):
    """`POST /api/waiver/sign`."""

    intake_id: UUID
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(min_length=1, max_length=50)]


class Signed(Struct, frozen=True):
    """The intake whose waiver was signed."""

    intake_id: UUID


class PaymentPage(Struct, frozen=True):
    """Where the customer pays."""

    url: str


class Payments(Struct, frozen=True, kw_only=True):
    """A page of what a customer has paid, the newest first."""

    payments: list[PaymentState]
    total: int
    limit: int
    offset: int


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
            Path(
                "POST",
                "/api/intake/start",
                self.start_intake,
                roles=CUSTOMER,
                body=sessions.IntakeForm,
                answer=IntakeStarted,
                status=201,
                errors=("active_session_exists", "insufficient_credits", "slot_full", "slot_over"),
            ),
            Path(
                "POST",
                "/api/waiver/sign",
                self.sign_waiver,
                roles=CUSTOMER,
                body=Waiver,
                answer=Signed,
                errors=("not_found",),
            ),
            Path(
                "GET",
                "/api/checkout/create-session",
                self.create_checkout,
                roles=CUSTOMER,
                query=checkout.CheckoutQuery,
                answer=PaymentPage,
                status=303,
                also=(200,),
                errors=(
                    "not_found",
                    "nothing_to_pay",
                    "active_session_exists",
                    "already_booked",
                    "payment_pending",
                    "slot_full",
                    "slot_over",
                    "waiver_required",
                    "payment_failed",
                ),
            ),
            Path(
                "POST",
                "/api/stripe/webhook",
                self.stripe_webhook,
                body=bytes,
                body_bytes=MAX_WEBHOOK_BYTES,
                headers=("stripe-signature",),
            ),
            Path("GET", "/checkout/success", self.checkout_success, query=ComingBack, media=HTML),
            Path("GET", "/checkout/cancel", self.checkout_cancel, media=HTML),
            Path(
                "GET",
                "/api/customer/payments",
                self.payments,
                roles=CUSTOMER,
                query=Page,
                answer=Payments,
            ),
            Path(
                "GET",
                "/api/requests/{id}",
                self.request,
                roles=CUSTOMER,
                answer=RequestState,
            ),
            Path(
                "POST",
                "/api/requests/{id}/cancel",
                self.cancel_request,
                roles=CUSTOMER,
                body=Cancellation,
                body_optional=True,
                answer=RequestState,
                errors=("not_open",),
            ),
            Path(
                "POST",
                "/api/requests/{id}/widen",
                self.widen_request,
                roles=CUSTOMER,
                answer=RequestState,
                errors=("not_open", "nothing_to_widen"),
            ),
        ]

    async def start_intake(self, asked: Asked) -> IntakeStarted:
        """Stores a wish; a free plan is a session at once."""
        return await self.start(asked.caller.user_id, asked.body, asked.received_at)

    async def sign_waiver(self, asked: Asked) -> Signed:
        """Keeps who signed, when, which version, from where (S5)."""
        form: Waiver = asked.body
        name, address = people.checked_name(form.name), self.address(asked.request)
        await sessions.sign_waiver(
            self.node.pool, asked.caller.user_id, form.intake_id, name, form.version, address
        )
        return Signed(form.intake_id)

    async def create_checkout(self, asked: Asked) -> Response:
        """To Stripe's hosted page; its address as JSON for who asks for JSON (C1)."""
        node = self.node
        url = await checkout.create_checkout(
            node.pool, node.stripe, node.config, asked.caller.user_id, asked.query
        )
        if "application/json" in asked.request.headers.get("accept", ""):
            return ok(PaymentPage(url))
        return RedirectResponse(url, status_code=303, headers={"cache-control": "no-store"})

    async def stripe_webhook(self, asked: Asked) -> None:
        """200 after the commit (C2). What was booked is dispatched then."""
        node = self.node
        signature = asked.request.headers.get("stripe-signature")
        outcome = await webhooks.handle_webhook(
            node.pool, node.stripe, node.config, asked.body, signature, node.dispatcher.open_at_once
        )
        node.took(outcome, asked.received_at)

    async def checkout_success(self, asked: Asked) -> Response:
        """Says what has become of the payment that somebody comes back from. Only Stripe's webhook
        books: this page knows what our rows say, and looks again while they wait for it."""
        came: ComingBack = asked.query
        payment = None
        if came.session_id:
            payment = await customer_payments.of_checkout(self.node.pool, came.session_id)
        if payment is None or payment.status in ("created", "expired", "failed"):
            text = f"{messages.PAYMENT_EXPECTED} Your booking starts as soon as it is."
            again = None if payment is None else LOOK_AGAIN_SECONDS
            return page("Thank you", text, refresh_seconds=again, onward=TO_THE_BOOKING)
        title = "Thank you" if payment.status == "fulfilled" else "About your payment"
        return page(title, payment.message, onward=TO_THE_BOOKING)

    async def checkout_cancel(self, asked: Asked) -> Response:
        """Says that nothing happened."""
        text = "You left the payment page. You can begin again."
        return page("Nothing was charged", text, onward=("/customer", "Begin again"))

    async def payments(self, asked: Asked) -> Payments:
        """All that the caller has paid, and what has become of it."""
        part: Page = asked.query
        return Payments(
            **await customer_payments.listing(
                self.node.pool, asked.caller.user_id, limit=part.limit, offset=part.offset
            )
        )

    async def request(self, asked: Asked) -> RequestState:
        """The frame `request.status` of the customer's own request."""
        entry = await self.node.dispatcher.customer_entry(asked.caller.user_id, asked.id)
        return self.request_state(entry)

    async def cancel_request(self, asked: Asked) -> RequestState:
        """Gives up before an accept; afterwards it is the end of the session."""
        form: Cancellation = asked.body
        entry = await self.node.dispatcher.cancel(asked.caller.user_id, asked.id, form.refund_as)
        return self.request_state(entry)

    async def widen_request(self, asked: Asked) -> RequestState:
        """Ends a priority or head-start stage now, so that everybody is asked."""
        entry = await self.node.dispatcher.widen(asked.caller.user_id, asked.id)
        return self.request_state(entry)
