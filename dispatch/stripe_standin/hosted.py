"""The hosted pages: paying a checkout under `/c/pay`, setting up an account under `/c/onboard`.

Its one job: a person's visit in, one action on the ledger, a page or a way onward out. Imports
Starlette and the rest of this package below `server`. What cannot be done is told on a page, or as
JSON to who asks for that.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from . import checkout, onboarding, page
from .connected import Link
from .delivery import Deliverer
from .ledger import Ledger
from .objects import Session
from .params import ApiError


class Hosted:
    """The endpoints under `/c` on one ledger."""

    def __init__(self, ledger: Ledger, deliverer: Deliverer, now: Callable[[], float]) -> None:
        self._ledger = ledger
        self._deliverer = deliverer
        self._now = now

    def routes(self) -> list[Route]:
        return [
            Route("/c/pay/{id}", self.show, methods=["GET"]),
            Route("/c/pay/{id}/pay", self.pay, methods=["POST"]),
            Route("/c/pay/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/c/onboard/{id}", self.show_onboarding, methods=["GET"]),
            Route("/c/onboard/{id}/finish", self.finish, methods=["POST"]),
            Route("/c/onboard/{id}/leave", self.leave, methods=["POST"]),
        ]

    # --- checkout ----------------------------------------------------------------------------

    async def show(self, request: Request) -> Response:
        try:
            session = self._current(request)
        except ApiError as error:
            return _told(request, error)
        if session.status == "complete":
            text = "It was paid here before. Nothing more is taken."
            shown = page.message("This payment was already made", text, _way_back(session))
        elif session.status == "expired":
            text = "The time to pay is over and nothing was taken."
            shown = page.message("This checkout has expired", text, session.cancel_url)
        else:
            shown = page.checkout(session)
        ways_back = (session.success_url, session.cancel_url or "")
        return HTMLResponse(shown, headers=page.headers(*ways_back))

    async def pay(self, request: Request) -> Response:
        try:
            with self._ledger.transaction():
                session = checkout.pay(self._ledger, request.path_params["id"], now=self._now())
        except ApiError as error:
            return _told(request, error)
        self._deliverer.wake()
        return _onward(request, _way_back(session))

    async def cancel(self, request: Request) -> Response:
        try:
            session = self._current(request)
            if session.cancel_url is None:
                raise ApiError("This checkout cannot be left by cancelling.", status=409)
        except ApiError as error:
            return _told(request, error)
        return _onward(request, session.cancel_url)

    def _current(self, request: Request) -> Session:
        with self._ledger.transaction():
            return checkout.current(self._ledger, request.path_params["id"], now=self._now())

    # --- onboarding --------------------------------------------------------------------------

    async def show_onboarding(self, request: Request) -> Response:
        try:
            link, account = onboarding.open_link(self._ledger, request.path_params["id"])
        except ApiError as error:
            return _told(request, error)
        if self._is_over(link):
            return _over(request, link)
        ways_back = (link.return_url, link.refresh_url)
        return HTMLResponse(page.onboarding(link, account), headers=page.headers(*ways_back))

    async def finish(self, request: Request) -> Response:
        """As if the person had given everything; a link that is over leads to a new one."""
        try:
            with self._ledger.transaction():
                link, account = onboarding.open_link(self._ledger, request.path_params["id"])
                if self._is_over(link):
                    return _over(request, link)
                onboarding.finish(self._ledger, link, account, now=self._now())
        except ApiError as error:
            return _told(request, error)
        self._deliverer.wake()
        return _onward(request, link.return_url)

    async def leave(self, request: Request) -> Response:
        """Back without having finished: Stripe leads to the same address."""
        try:
            link, _ = onboarding.open_link(self._ledger, request.path_params["id"])
        except ApiError as error:
            return _told(request, error)
        return _onward(request, link.return_url)

    def _is_over(self, link: Link) -> bool:
        return link.used or link.expires_at <= self._now()


def _way_back(session: Session) -> str:
    return session.success_url.replace("{CHECKOUT_SESSION_ID}", session.id)


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _onward(request: Request, url: str) -> Response:
    if _wants_json(request):
        return JSONResponse({"ok": True, "redirect": url})
    return RedirectResponse(url, status_code=303, headers=page.headers())


def _over(request: Request, link: Link) -> Response:
    """Onward to where a new link is made."""
    if _wants_json(request):
        error = {"code": "link_expired", "message": "This link was used or is too old."}
        told = {"ok": False, "error": error, "redirect": link.refresh_url}
        return JSONResponse(told, 409)
    return _onward(request, link.refresh_url)


def _told(request: Request, error: ApiError) -> Response:
    said = error.body["error"]
    if _wants_json(request):
        code = said.get("code", "conflict")
        told = {"ok": False, "error": {"code": code, "message": said["message"]}}
        return JSONResponse(told, error.status)
    shown = page.message("That did not work", said["message"])
    return HTMLResponse(shown, error.status, headers=page.headers())
