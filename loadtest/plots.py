"""Plots as inline SVG, made of plain strings: delays, outcomes, lives of bookings.

Colours are CSS variables, so that a page may be light or dark. Imports `figures`; pure.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from loadtest.figures import OUTCOMES, Latency, Life

BINS = 28
WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 20, 30


def delay(latency: Latency) -> str:
    """A histogram over a logarithmic axis with the cumulative share as a line."""
    samples = latency.samples_ms
    if not samples:
        return _svg(WIDTH, HEIGHT, [_text(WIDTH / 2, HEIGHT / 2, "no samples", "middle")])
    low, high = _decades(samples)
    span = high - low

    def x_of(value_ms: float) -> float:
        share = (math.log10(max(value_ms, 10**low)) - low) / span
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    plot_height = HEIGHT - TOP - BOTTOM
    floor = HEIGHT - BOTTOM
    parts = [*_axis(low, high, x_of, floor)]
    counts = [0] * BINS
    for sample in samples:
        share = (math.log10(max(sample, 10**low)) - low) / span
        counts[min(BINS - 1, int(share * BINS))] += 1
    bin_width = (WIDTH - LEFT - RIGHT) / BINS
    for index, count in enumerate(counts):
        if count:
            bar = max(1.5, count / max(counts) * plot_height * 0.92)
            x = LEFT + index * bin_width
            parts.append(_rect(x + 0.75, floor - bar, bin_width - 1.5, bar, "bar"))
    points = [f"{x_of(samples[0]):.1f},{floor:.1f}"]
    for index, sample in enumerate(samples):
        y = floor - (index + 1) / len(samples) * plot_height
        points.append(f"{x_of(sample):.1f},{y:.1f}")
    parts.append(f'<polyline class="cdf" points="{" ".join(points)}"/>')
    for share, value in ((0.5, latency.p50_ms), (0.9, latency.p90_ms), (0.99, latency.p99_ms)):
        x, y = x_of(value), floor - share * plot_height
        parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
        side, anchor = (-6, "end") if x > WIDTH * 0.62 else (6, "start")
        drop = -5 if share == 0.99 else 11
        parts.append(_text(x + side, y + drop, f"p{share * 100:g}", anchor, "tag"))
    return _svg(WIDTH, HEIGHT, parts)


def _decades(samples: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(max(samples[0], 0.05)))
    high = math.ceil(math.log10(max(samples[-1], 0.06)))
    return low, max(high, low + 1)


def _axis(low: int, high: int, x_of: Callable[[float], float], floor: float) -> Iterable[str]:
    steps = (1, 3) if high - low <= 2 else (1,)
    ticks = [10.0**decade * step for decade in range(low, high) for step in steps] + [10.0**high]
    for tick in ticks:
        x = x_of(tick)
        anchor = "end" if tick == ticks[-1] else "middle"
        yield f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>'
        yield _text(x, floor + 16, milliseconds(tick), anchor, "label")
    for share in (0, 50, 100):
        y = floor - share / 100 * (floor - TOP)
        yield _text(LEFT - 6, y + 3.5, f"{share}%", "end", "label")
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>'


def outcomes(by_strategy: dict[str, dict[str, int]]) -> str:
    """One stacked bar for each strategy."""
    width, row, left = 1180, 34, 150
    parts = []
    for index, (strategy, counts) in enumerate(sorted(by_strategy.items())):
        total, x, y = sum(counts.values()), float(left), 8 + index * row
        parts.append(_text(left - 12, y + 15, strategy, "end", "name"))
        for outcome in OUTCOMES:
            count = counts.get(outcome, 0)
            if not count:
                continue
            part = count / total * (width - left - 60)
            kind = f"o-{outcome.replace(' ', '-')}"
            title = f"<title>{escape(strategy)}: {count} {outcome}</title>"
            parts.append(f"<g>{title}{_rect(x, y, max(part - 1.5, 1), 22, kind, 3)}")
            if part > 26:
                parts.append(_text(x + part / 2, y + 15, str(count), "middle", "inside"))
            parts.append("</g>")
            x += part
        parts.append(_text(width - 52, y + 15, f"{total}", "start", "name"))
    return _svg(width, 12 + len(by_strategy) * row, parts)


def lives(bookings: Sequence[Life]) -> str:
    """Every booking as a line from payment to end, the quickest first, coloured by its stages."""
    if not bookings:
        return ""
    width, left = 1180, 8
    row = max(3.0, min(14.0, 640 / len(bookings)))
    span = max(max(life.ended_seconds for life in bookings), 0.001)
    height = 14 + row * len(bookings) + 26

    def x_of(at_seconds: float) -> float:
        return left + at_seconds / span * (width - left - 30)

    parts = []
    step = _step(span)
    for index in range(int(span / step) + 1):
        x = x_of(index * step)
        parts.append(
            f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{height - 24:.1f}"/>'
        )
        parts.append(_text(x, height - 8, f"{index * step:g} s", "middle", "label"))
    by_length = sorted(bookings, key=lambda life: life.ended_seconds - life.paying_seconds)
    for index, life in enumerate(by_length):
        y = 12 + index * row
        parts.append(f"<g><title>{escape(_story(life))}</title>")
        for kind, start, end in _spans(life):
            x, w = x_of(start), max(x_of(end) - x_of(start), 0.8)
            parts.append(_rect(x, y, w, row * 0.72, kind, min(2.0, row / 4)))
        parts.append("</g>")
    return _svg(width, height, parts)


def _spans(life: Life) -> Iterable[tuple[str, float, float]]:
    """(colour, start, end) of what the booking waited for, one after the other."""
    waited_until = life.ended_seconds if life.accepted_seconds is None else life.accepted_seconds
    alone_until = waited_until
    if life.fallback_seconds is not None:
        alone_until = min(life.fallback_seconds, waited_until)
    first = life.paying_seconds
    if life.first_offer_seconds is not None:
        offered = min(life.first_offer_seconds, waited_until)
        yield "l-paying", first, offered
        first = offered
    alone = life.strategy == "priority_broadcast"
    if alone and alone_until > first:
        yield "l-alone", first, alone_until
        first = alone_until
    if waited_until > first:
        yield "l-everyone", first, waited_until
    if life.accepted_seconds is not None:
        joined = life.ended_seconds if life.active_seconds is None else life.active_seconds
        joined = max(joined, life.accepted_seconds)
        yield "l-accepted", life.accepted_seconds, joined
        if life.ended_seconds > joined:
            yield "l-active", joined, life.ended_seconds


def _story(life: Life) -> str:
    accepted = life.accepted_seconds
    took = "" if accepted is None else f", accepted after {accepted - life.paying_seconds:.3f} s"
    return f"{life.tag} ({life.strategy}): {life.outcome}{took}"


def _step(span_seconds: float) -> float:
    for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0):
        if span_seconds / step <= 14:
            return step
    return 600.0


def milliseconds(value: float) -> str:
    """A delay as people read it: `0.4 ms`, `12 ms`, `1.3 s`; a dash when nothing was measured."""
    if value <= 0:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms"


def _rect(x: float, y: float, w: float, h: float, kind: str, round_by: float = 1.5) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
        f'rx="{round_by:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:.0f}" role="img" '
        f'preserveAspectRatio="xMidYMid meet">{"".join(parts)}</svg>'
    )
