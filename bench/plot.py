"""Small curves over logarithmic axes, as SVG made of plain strings. Pure."""

import math
from collections.abc import Mapping

Curve = list[tuple[float, float]]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 240, 150, 44, 24, 32, 16
INK, LINE = "#555", "#1769aa"


def panels(curves: Mapping[str, Curve], unit: str) -> str:
    """A panel a curve, side by side, all with the same vertical axis in `unit`."""
    highest = max(y for curve in curves.values() for _, y in curve)
    lowest = min(y for curve in curves.values() for _, y in curve)
    decades = (math.floor(math.log10(lowest)), math.ceil(math.log10(highest)))
    width = len(curves) * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'font-family="sans-serif" font-size="10" fill="{INK}">'
    ]
    for at, (name, curve) in enumerate(curves.items()):
        parts += _panel(at * (WIDTH + GAP), f"{unit} / {name}", curve, decades)
    return "\n".join([*parts, "</svg>\n"])


def _panel(left: float, title: str, curve: Curve, decades: tuple[int, int]) -> list[str]:
    low, high = decades
    first, last = math.log10(curve[0][0]), math.log10(curve[-1][0])
    floor = HEIGHT - BOTTOM

    def x_of(x: float) -> float:
        share = (math.log10(x) - first) / max(last - first, 1e-9)
        return left + LEFT + share * (WIDTH - LEFT - 12)

    def y_of(y: float) -> float:
        return floor - (math.log10(y) - low) / max(high - low, 1) * (floor - TOP)

    parts = [f'<text x="{left + LEFT}" y="12">{title}</text>']
    for decade in range(low, high + 1):
        y = y_of(10.0**decade)
        parts.append(
            f'<path d="M{left + LEFT} {y:.1f}H{left + WIDTH}" stroke="{INK}" opacity=".25"/>'
            f'<text x="{left + LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{10.0**decade:g}</text>'
        )
    points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    for x, y in curve:
        parts.append(
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{LINE}"/>'
            f'<text x="{x_of(x):.1f}" y="{floor + 14}" text-anchor="middle">{x:,.0f}</text>'
        )
    return parts
