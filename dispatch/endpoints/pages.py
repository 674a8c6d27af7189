"""The pages for people (V1), what they are made of, and what there is to book."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

import dispatch
from dispatch import overviews
from dispatch.endpoints.area import Area, Asked, Path
from dispatch.errors import NotFound
from dispatch.node import Node
from dispatch.pages import HTML

ANY_MEDIA: Final = "*/*"
_MEDIA: Final = {
    ".html": HTML,
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, and nothing inline: what people typed cannot become script (security 16).
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # kept, and asked for with its ETag: a new release is seen at once
}


@dataclass(frozen=True, slots=True)
class _Static:
    """One file of `web/` as it is sent."""

    content: bytes
    headers: Mapping[str, str]

    @classmethod
    def read(cls, file: File) -> "_Static":
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, {**_HEADERS, "content-type": _MEDIA[file.suffix], "etag": etag})

    def answer(self, request: Request) -> Response:
        """The whole file, or 304 to whoever has it already."""
        known = request.headers.get("if-none-match", "")
        if self.headers["etag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=dict(self.headers))
        return Response(self.content, headers=dict(self.headers))


class Pages(Area):
    """For people with a browser."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._files = _files()

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path("GET", "/", self.index, media=HTML, also=(304,)),
            Path("GET", "/customer", self.customer, media=HTML, also=(304,)),
            Path("GET", "/intake/waiver", self.waiver, media=HTML, also=(304,)),
            Path("GET", "/mechanic", self.mechanic, media=HTML, also=(304,)),
            Path("GET", "/ops", self.ops, media=HTML, also=(304,)),
            Path("GET", "/web/{name}", self.file, media=ANY_MEDIA, also=(304,)),
            Path("GET", "/api/plans", self.plans, answer=overviews.Plans),
        ]

    async def index(self, asked: Asked) -> Response:
        """What this is, and where to go."""
        return self._page("index", asked)

    async def customer(self, asked: Asked) -> Response:
        """A customer's page: book, pay, watch, chat, rate, book again."""
        return self._page("customer", asked)

    async def waiver(self, asked: Asked) -> Response:
        """Where an intake leads (S1): the customer's page, which goes on from there."""
        return self._page("customer", asked)

    async def mechanic(self, asked: Asked) -> Response:
        """A mechanic's page: offers, sessions, earnings."""
        return self._page("mechanic", asked)

    async def ops(self, asked: Asked) -> Response:
        """An operator's page: open requests, who is online, who waits for approval, payouts."""
        return self._page("ops", asked)

    async def file(self, asked: Asked) -> Response:
        """What the pages are made of: scripts and style."""
        found = self._files.get(asked.request.path_params["name"])
        if found is None:
            raise NotFound
        return found.answer(asked.request)

    async def plans(self, asked: Asked) -> overviews.Plans:
        """What can be booked, and at what price, the cheapest first."""
        return await overviews.plans(self.node.pool)

    def _page(self, name: str, asked: Asked) -> Response:
        return self._files[f"{name}.html"].answer(asked.request)


def _files() -> dict[str, _Static]:
    """What lies in `web/` beside the package, or in it where it is installed from a wheel."""
    package = File(dispatch.__file__).parent
    folder = package / "web" if (package / "web").exists() else package.parent / "web"
    return {file.name: _Static.read(file) for file in folder.iterdir() if file.suffix in _MEDIA}
