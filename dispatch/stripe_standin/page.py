"""The hosted pages: what a person sees between our server and the way back.

Its one job: HTML for a checkout or an onboarding in each of its states, without any script. Imports
`objects`, `connected` and `params`. Everything that came from outside is escaped, and the page's
policy allows its one style and its own forms only; the origins that a form leads back to are named
as well, because browsers hold `form-action` against the redirect that answers a form.
"""

import base64
import hashlib
from html import escape

from .connected import Account, Link
from .objects import Session
from .params import origin_of

_SYMBOLS = {"usd": "$", "cad": "CA$", "aud": "A$", "eur": "€", "gbp": "£"}
# https://docs.stripe.com/currencies#zero-decimal
_NO_CENTS = {
    *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
    *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1a2233; --soft: #5d6880; --line: #e3e7ef;
  --paper: #fff; --ground: #f3f5f9; --act: #2f5bea; --on-act: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9edf6; --soft: #9aa6bf; --line: #2c3548;
  --paper: #182031; --ground: #0f1523; --act: #6d8dff; --on-act: #0b1020; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { width: 100%; max-width: 26rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: 14px; padding: 2rem; box-shadow: 0 12px 32px rgb(15 21 35 / .08); }
h1 { margin: 0; font-size: 1rem; font-weight: 500; color: var(--soft); overflow-wrap: anywhere; }
h1.said { margin-bottom: .5rem; font-size: 1.25rem; font-weight: 650; color: var(--ink); }
.total { margin: .25rem 0 1.5rem; font-size: 2.5rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
dl { margin: 0 0 1.5rem; padding: 1rem 0; border-block: 1px solid var(--line); display: grid;
  grid-template-columns: 1fr auto; gap: .35rem 1rem; }
dt { overflow-wrap: anywhere; } dt small { display: block; color: var(--soft); }
dd { margin: 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
.loud { margin: -2rem -2rem 1.5rem; padding: .6rem 1rem; border-radius: 14px 14px 0 0;
  background: #ffd43b; color: #1a2233; font-weight: 650; text-align: center; }
form + form { margin-top: .75rem; }
button, .back { display: block; width: 100%; padding: .8rem 1rem; border-radius: 9px; font: inherit;
  font-weight: 600; text-align: center; text-decoration: none; cursor: pointer;
  border: 1px solid var(--line); background: transparent; color: var(--ink); }
.act { background: var(--act); border-color: var(--act); color: var(--on-act); }
button:hover, .back:hover { filter: brightness(.95); }
:focus-visible { outline: 3px solid var(--act); outline-offset: 2px; }
footer { margin-top: 1.5rem; font-size: .8125rem; color: var(--soft); text-align: center; }
p { margin: 0 0 1.25rem; color: var(--soft); overflow-wrap: anywhere; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def headers(*ways_back: str) -> dict[str, str]:
    """The headers of every page; `ways_back` are where its forms lead."""
    origins = {origin_of(way) for way in ways_back}
    targets = ["'self'", *sorted(origin for origin in origins if origin)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        f"frame-ancestors 'none'; form-action {' '.join(targets)}"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def money(amount: int, currency: str) -> str:
    """`1500, "usd"` as `$15.00`; other currencies with their code behind."""
    number = f"{amount:,}" if currency in _NO_CENTS else f"{amount // 100:,}.{amount % 100:02}"
    symbol = _SYMBOLS.get(currency)
    return f"{symbol}{number}" if symbol else f"{number} {currency.upper()}"


def checkout(session: Session) -> str:
    """The page of a session that can be paid."""
    amount = money(session.amount_total, session.currency)
    what = session.items[0].name if len(session.items) == 1 else f"{len(session.items)} items"
    lines = "".join(_line(session, index) for index in range(len(session.items)))
    who = f"<p>For {escape(session.customer_email)}</p>" if session.customer_email else ""
    cancel = _form(f"/c/pay/{session.id}/cancel", "Cancel") if session.cancel_url else ""
    return _page(
        f"Pay {amount}",
        f'<h1>{escape(what)}</h1><div class="total">{escape(amount)}</div><dl>{lines}</dl>{who}'
        + _form(f"/c/pay/{session.id}/pay", f"Pay {amount}", "act")
        + cancel,
    )


def _line(session: Session, index: int) -> str:
    item = session.items[index]
    name = escape(item.name) + (f" &times; {item.quantity}" if item.quantity > 1 else "")
    note = f"<small>{escape(item.description)}</small>" if item.description else ""
    price = escape(money(item.unit_amount * item.quantity, session.currency))
    return f"<dt>{name}{note}</dt><dd>{price}</dd>"


def onboarding(link: Link, account: Account) -> str:
    """The page of a link that can still be used."""
    who = f"<p>For {escape(account.email)}</p>" if account.email else ""
    path = f"/c/onboard/{link.id}"
    return _page(
        "Set up payouts",
        '<h1 class="said">Set up payouts</h1>'
        "<p>Stripe would ask here who you are and where your money goes. Nothing is asked.</p>"
        + who
        + _form(f"{path}/finish", "Finish", "act")
        + _form(f"{path}/leave", "Not now"),
    )


def _form(action: str, label: str, style: str = "") -> str:
    return (
        f'<form method="post" action="{escape(action)}">'
        f'<button class="{style}">{escape(label)}</button></form>'
    )


def message(title: str, text: str, back_url: str | None = None) -> str:
    """A page that only says something, with a way back where there is one."""
    back = f'<a class="back" href="{escape(back_url)}">Go back</a>' if back_url else ""
    said = f'<h1 class="said">{escape(title)}</h1><p>{escape(text)}</p>'
    return _page(title, said + back)


_BANNER = '<div class="loud">Not Stripe: a stand-in for tests</div>'


def _page(title: str, content: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{_BANNER}{content}"
        "<footer>A local stand-in for Stripe. No card is asked for and no money moves.</footer>"
        "</main></body></html>"
    )
