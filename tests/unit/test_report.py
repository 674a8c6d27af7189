"""The report over recorded histories: figures that add up, a page that needs nothing but itself."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from loadtest import report
from loadtest.checker import check
from loadtest.figures import About, Figures, measure, percentile
from tests.unit.recorded import Recorder, session_id

ABOUT = About(
    "python -m loadtest", "2026-11-20T12:00:00Z", "A <fast> CPU", 2, "Linux", 7, 12.5, 3.0
)


def figures_of(recorder: Recorder) -> Figures:
    cases = recorder.cases()
    return measure(cases, check(cases), ABOUT)


@pytest.fixture
def two_bookings() -> Recorder:
    """Ana's goes to her favourite in half a second, Eva's to the other one after the window."""
    recorder = Recorder()
    ana, eva = recorder.customer("ana"), recorder.customer("eva")
    bruno, carla = recorder.mechanic("bruno"), recorder.mechanic("carla")

    ana.orders("B1", routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")
    bruno.wins("r1", re=bruno.accepts("r1"))
    ana.sees("r1", "accepted", 3, mechanic={"id": "bruno"})
    bruno.session("r1", "active", 4, re=bruno.sends("session.join", session_id=session_id("r1")))
    ana.sees("r1", "completed", 5, mechanic={"id": "bruno"})

    eva.orders("B2", routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    eva.sees("r2", "pending", 2)
    carla.is_offered("r2")
    bruno.is_offered("r2")
    carla.wins("r2", re=carla.accepts("r2"))
    bruno.loses("r2", accept_id="a2", re=bruno.accepts("r2", accept_id="a2"))
    eva.sees("r2", "accepted", 3, mechanic={"id": "carla"})
    eva.sees("r2", "completed", 4, mechanic={"id": "carla"})
    return recorder


def test_the_figures_of_two_bookings(two_bookings: Recorder) -> None:
    figures = figures_of(two_bookings)

    assert figures.outcomes == {"priority_broadcast": {"favourite": 1, "everyone": 1}}
    assert {name: figures.counts[name] for name in ("bookings", "offers", "accepts", "won")} == {
        "bookings": 2,
        "offers": 3,
        "accepts": 3,
        "won": 2,
    }
    samples = {latency.name: latency.samples_ms for latency in figures.latencies}
    assert samples["pay_to_customer"] == pytest.approx([200, 200])
    assert samples["pay_to_offer"] == pytest.approx([300, 300])
    assert samples["accept_to_won"] == pytest.approx([100, 100])
    assert samples["accept_to_lost"] == pytest.approx([100])
    assert samples["pay_to_accepted"] == pytest.approx([700, 1100])
    assert [(life.tag, life.outcome) for life in figures.lives] == [
        ("B1", "favourite"),
        ("B2", "everyone"),
    ]
    assert figures.lives[0].accepted_seconds == pytest.approx(0.7)
    assert figures.violations == []


def test_what_the_server_proved_of_itself_is_in_the_report(two_bookings: Recorder) -> None:
    proofs = {"replay": "2 of 2 requests are the same", "books": "everything matches"}

    figures = measure(two_bookings.cases(), [], ABOUT, proofs)

    assert "books: everything matches" in report.summary(figures).splitlines()
    assert "<tr><th>books</th><td>everything matches</td></tr>" in report.page(figures)


def test_a_percentile_is_a_sample_that_was_seen() -> None:
    samples = [float(value) for value in range(1, 101)]

    assert [percentile(samples, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([], 0.5) == 0


def test_the_json_holds_every_figure(two_bookings: Recorder, tmp_path: Path) -> None:
    figures = figures_of(two_bookings)

    as_json, _ = report.write(figures, tmp_path / "reports", "run")

    assert msgspec.json.decode(as_json.read_bytes(), type=Figures) == figures


def test_the_page_stands_alone_and_is_well_formed(two_bookings: Recorder, tmp_path: Path) -> None:
    _, as_html = report.write(figures_of(two_bookings), tmp_path, "run")

    text = as_html.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|href=|https?:", text)
    drawings = [
        ElementTree.fromstring(drawing)
        for drawing in re.findall(r"<svg viewBox=\"0 0 .*?</svg>", text)
        if "class=" in drawing and 'class="' in drawing
    ]
    assert len(drawings) == len(figures_of(two_bookings).latencies) + 2
    assert unclosed_tags(text) == []
    assert "A &lt;fast&gt; CPU" in text
    assert "0</b> violations" in text


def test_a_violation_is_shown_with_its_evidence(two_bookings: Recorder) -> None:
    recorder = two_bookings
    fay = recorder.customer("fay")
    fay.orders("B3", concern="<b>smoke</b>")

    figures = figures_of(recorder)
    text = report.page(figures)

    assert [violation.rule for violation in figures.violations] == ["lost_booking"]
    assert figures.outcomes["broadcast"] == {"not booked": 1}
    assert "lost_booking" in text
    assert "&lt;b&gt;smoke" in text
    assert "<b>smoke" not in text
    assert "1 violations" in report.summary(figures)


def test_a_run_without_bookings_is_still_a_report() -> None:
    figures = figures_of(Recorder())

    assert "no samples" in report.page(figures)
    assert figures.counts["bookings"] == 0


def unclosed_tags(text: str) -> list[str]:
    """The tags that a reader of the page would find open at its end."""
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            assert tag in {"rect", "circle", "line", "polyline"}

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(text)
    return open_tags
