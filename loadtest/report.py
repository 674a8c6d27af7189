"""Writes the figures of a run as JSON and as one self-contained HTML page.

The page needs nothing but itself: inline CSS and SVG, no script, nothing fetched. Imports
`figures` and `plots`. Fails with `OSError` when the folder cannot be written.
"""

from html import escape
from pathlib import Path

import msgspec

from loadtest import plots
from loadtest.figures import OUTCOMES, Figures
from loadtest.violation import Violation

SHOWN_VIOLATIONS = 40


def write(figures: Figures, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `name.json` and `name.html` in `folder`, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_html = folder / f"{name}.json", folder / f"{name}.html"
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    as_html.write_text(page(figures), encoding="utf-8")
    return as_json, as_html


def summary(figures: Figures) -> str:
    """The figures as a few lines for a terminal."""
    counts = figures.counts
    lines = [
        f"{counts['bookings']} bookings: {counts['completed']} completed, "
        f"{counts['expired']} expired, {counts['cancelled']} cancelled; "
        f"{counts['offers']} offers, {counts['accepts']} accepts "
        f"({counts['won']} won, {counts['lost']} lost)",
        f"{'':<34}{'n':>6}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    for latency in figures.latencies:
        values = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms)
        cells = "".join(f"{plots.milliseconds(value):>10}" for value in values)
        lines.append(f"{latency.title:<34}{len(latency.samples_ms):>6}{cells}")
    for strategy, by_outcome in sorted(figures.outcomes.items()):
        parts = ", ".join(f"{by_outcome[o]} {o}" for o in OUTCOMES if o in by_outcome)
        lines.append(f"{strategy}: {parts}")
    lines += [f"fault: {fault}" for fault in figures.faults]
    lines += [f"{name}: {said}" for name, said in figures.proofs.items()]
    lines.append(f"{len(figures.violations)} violations")
    return "\n".join(lines)


def page(figures: Figures) -> str:
    """The whole HTML page."""
    about = figures.about
    body = [
        "<header><div><h1>Dispatch under load</h1>",
        f"<p class=sub>{escape(about.date)} · {about.seconds:.1f} s · seed {about.seed}</p></div>",
        _verdict(figures.violations),
        "</header>",
        _tiles(figures),
        "<h2>Delays</h2><p class=hint>Bars: how many took so long (logarithmic). "
        "Line: the share that was done by then.</p>",
        f"<div class=grid>{''.join(_delay_card(figures, i) for i in range(len(figures.latencies)))}"
        "</div>",
        _table(figures),
        "<h2>How bookings ended</h2>",
        _legend([(f"o-{o.replace(' ', '-')}", _OUTCOME_WORDS[o]) for o in _met(figures)]),
        f"<div class=card>{plots.outcomes(figures.outcomes)}</div>",
        "<h2>Every booking, from payment to end</h2>",
        _legend(_LIFE_WORDS),
        f"<div class=card>{plots.lives(figures.lives)}</div>",
        _violations(figures.violations),
        _facts(figures),
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Dispatch under load</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


_OUTCOME_WORDS = {
    "favourite": "accepted by the favourite",
    "workshop": "accepted by the chosen workshop",
    "everyone": "accepted by somebody else",
    "expired": "expired",
    "cancelled": "cancelled",
    "open": "still open",
    "not booked": "not booked",
}
_LIFE_WORDS = [
    ("l-paying", "webhook, request, first offer"),
    ("l-alone", "offered to the favourite alone"),
    ("l-everyone", "offered to everyone meant"),
    ("l-accepted", "accepted, joining"),
    ("l-active", "session"),
]


def _verdict(violations: list[Violation]) -> str:
    if not violations:
        return "<div class='verdict good'><b>0</b> violations</div>"
    return f"<div class='verdict bad'><b>{len(violations)}</b> violations</div>"


def _tiles(figures: Figures) -> str:
    counts = figures.counts
    first_offer = next(lat for lat in figures.latencies if lat.name == "pay_to_offer")
    won = next(lat for lat in figures.latencies if lat.name == "accept_to_won")
    tiles = [
        (f"{counts['bookings']:,}", "bookings at once"),
        (f"{counts['completed']:,}", "completed"),
        (f"{counts['offers']:,}", "offers on sockets"),
        (f"{counts['accepts']:,}", f"accepts: {counts['won']} won, {counts['lost']} lost"),
        (plots.milliseconds(first_offer.p50_ms), "pay → first offer, p50"),
        (plots.milliseconds(won.p50_ms), "accept → won, p50"),
    ]
    cells = (f"<div class=tile><b>{escape(v)}</b><span>{escape(k)}</span></div>" for v, k in tiles)
    return f"<div class=tiles>{''.join(cells)}</div>"


def _delay_card(figures: Figures, index: int) -> str:
    latency = figures.latencies[index]
    return (
        f"<figure class=card><figcaption>{escape(latency.title)}"
        f"<span>p50 {plots.milliseconds(latency.p50_ms)}</span></figcaption>"
        f"{plots.delay(latency)}</figure>"
    )


def _table(figures: Figures) -> str:
    rows = []
    for latency in figures.latencies:
        values = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms)
        cells = "".join(f"<td>{plots.milliseconds(value)}</td>" for value in values)
        rows.append(
            f"<tr><th>{escape(latency.title)}</th><td>{len(latency.samples_ms)}</td>{cells}</tr>"
        )
    head = "<tr><th></th><td>n</td><td>p50</td><td>p90</td><td>p99</td><td>max</td></tr>"
    return f"<table class=card><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _met(figures: Figures) -> list[str]:
    met = {outcome for counts in figures.outcomes.values() for outcome in counts}
    return [outcome for outcome in OUTCOMES if outcome in met]


def _legend(entries: list[tuple[str, str]]) -> str:
    items = (
        f"<span><svg viewBox='0 0 10 10'><rect class={kind} width=10 height=10 rx=2 /></svg>"
        f"{escape(words)}</span>"
        for kind, words in entries
    )
    return f"<p class=legend>{''.join(items)}</p>"


def _violations(violations: list[Violation]) -> str:
    if not violations:
        return ""
    rows = []
    for violation in violations[:SHOWN_VIOLATIONS]:
        evidence = "\n".join(
            msgspec.json.encode(event).decode() for event in violation.evidence[:6]
        )
        rows.append(
            f"<details class=card><summary><b>{escape(violation.rule)}</b> "
            f"{escape(violation.detail)} <code>{escape(violation.request_id or '')}</code>"
            f"</summary><pre>{escape(evidence)}</pre></details>"
        )
    more = len(violations) - len(rows)
    rest = f"<p class=hint>and {more} more in the JSON</p>" if more > 0 else ""
    return f"<h2>Violations</h2>{''.join(rows)}{rest}"


def _facts(figures: Figures) -> str:
    about = figures.about
    facts = [
        ("command", about.command),
        ("machine", f"{about.cpu}, {about.cores} cores (server and clients share them)"),
        ("system", about.system),
        ("clients' CPU", f"{about.clients_cpu_seconds} s of {about.seconds} s"),
        *[("fault", fault) for fault in figures.faults],
        *figures.proofs.items(),
        *[("errors", f"{count} {code}") for code, count in sorted(figures.errors.items())],
        *[(name.replace("_", " "), f"{count:,}") for name, count in figures.counts.items()],
    ]
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts)
    return f"<h2>The run</h2><table class='card facts'><tbody>{''.join(rows)}</tbody></table>"


_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#5b6876;--line:#e3e7ec;
--bar:#9ec5f4;--cdf:#1d4ed8;--fav:#0d9488;--shop:#6366f1;--all:#3b82f6;--exp:#f59e0b;--can:#94a3b8;
--bad:#dc2626;--good:#15803d}
@media (prefers-color-scheme:dark){:root{--bg:#0e1319;--card:#171e27;--ink:#e7ecf2;--soft:#93a1b1;
--line:#28323e;--bar:#2f4d75;--cdf:#7fb0ff;--fav:#2dd4bf;--shop:#a5a7fb;--all:#60a5fa;--exp:#fbbf24;
--can:#64748b;--bad:#f87171;--good:#4ade80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:36px 28px 64px}
header{display:flex;justify-content:space-between;align-items:center;gap:24px}
h1{font-size:30px;letter-spacing:-.02em;margin:0}h2{font-size:19px;margin:38px 0 4px}
.sub,.hint{color:var(--soft);margin:2px 0 12px}
.verdict{border-radius:12px;padding:10px 20px;font-size:16px;border:1.5px solid}
.verdict b{font-size:24px;margin-right:4px}
.good{color:var(--good);border-color:var(--good)}.bad{color:var(--bad);border-color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:14px;
margin:26px 0}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 18px}.tile b{display:block;font-size:25px;letter-spacing:-.02em}
.tile span{color:var(--soft);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:14px}
.card{padding:14px 16px;margin:0 0 14px}figure.card{margin:0}
figcaption{display:flex;justify-content:space-between;font-weight:600;margin-bottom:6px}
figcaption span{color:var(--soft);font-weight:400;white-space:nowrap;padding-left:10px}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:10.5px}
svg .name{fill:var(--ink);font-size:13px}
svg .inside{fill:var(--card);font-size:12px;font-weight:600}
svg .tag{fill:var(--ink);font-size:10.5px;font-weight:600}
.bar{fill:var(--bar)}.cdf{fill:none;stroke:var(--cdf);stroke-width:1.8;stroke-linejoin:round}
.mark{fill:var(--card);stroke:var(--cdf);stroke-width:1.8}
line.rule{stroke:var(--line)}.axis{stroke:var(--soft);stroke-width:1}
.o-favourite{fill:var(--fav)}.o-workshop{fill:var(--shop)}.o-everyone{fill:var(--all)}
.o-expired{fill:var(--exp)}.o-cancelled{fill:var(--can)}.o-open,.o-not-booked{fill:var(--bad)}
.l-paying{fill:var(--can)}.l-alone{fill:var(--exp)}.l-everyone{fill:var(--all)}
.l-accepted{fill:var(--shop)}.l-active{fill:var(--fav)}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;color:var(--soft);font-size:13px;margin:4px 0 10px}
.legend svg{display:inline-block;width:11px;height:11px;margin-right:6px;vertical-align:-1px}
table{border-collapse:collapse;width:100%;margin-top:14px!important;
font-variant-numeric:tabular-nums}
table.card{border-spacing:0;border-collapse:separate}
th{text-align:left;font-weight:500;padding:5px 10px 5px 0}td{text-align:right;padding:5px 0}
thead td{color:var(--soft)}tbody tr+tr th,tbody tr+tr td{border-top:1px solid var(--line)}
.facts td{text-align:left;overflow-wrap:anywhere}
.facts th{width:180px;color:var(--soft);vertical-align:top}
details{padding:10px 16px}summary{cursor:pointer}pre{overflow:auto;font-size:12px}
code{color:var(--soft)}
"""
