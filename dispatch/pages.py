"""Small static pages for people who come back from elsewhere.

One job: one plain page, without script, under a strict policy. The text is ours and is escaped all
the same.
"""

import base64
import hashlib
from html import escape
from typing import Final

from starlette.responses import HTMLResponse

HTML: Final = "text/html; charset=utf-8"  # what HTMLResponse says

_STYLE: Final = (
    "body{font:18px/1.5 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1rem;"
    "color:#1c2430;background:#f6f7f9}h1{font-size:1.6rem}a{color:#1f4fd8}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page(
    title: str,
    text: str,
    *,
    refresh_seconds: int | None = None,
    onward: tuple[str, str] | None = None,
) -> HTMLResponse:
    """A page with a heading, a paragraph and, where there is an `onward`, a link: address and text.
    It looks again by itself after so many seconds."""
    link = f'<p><a href="{escape(onward[0])}">{escape(onward[1])}</a>' if onward else ""
    again = f"<meta http-equiv=refresh content={refresh_seconds}>" if refresh_seconds else ""
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8>{again}"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><link rel=icon href=data:,>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(text)}</p>{link}",
        headers=_HEADERS,
    )
