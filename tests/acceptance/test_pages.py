"""The pages, in real browsers against a real server: what people do there, and what they then see.

Debian's Chromium is driven by playwright; where there is none these tests fail and say so. Whatever
a browser complains of (an exception, an error in its console, something that the page's policy
forbids) fails the test as well.
"""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    WebSocketRoute,
    expect,
    sync_playwright,
)

from tests.acceptance.actors import Town
from tests.acceptance.attacker import Attacker

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 10_000
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
TRICK = "<img/src=x/onerror=alert(1)>"  # without a space: of a customer others see the first name
PASSWORD = "correct horse battery"

SAY_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error("policy", event.violatedDirective, event.blockedURI, event.sourceFile));
"""


@pytest.fixture(scope="module")
def browser(town: Town) -> Iterator[Browser]:
    """For the module; playwright keeps an event loop running, so the town was there before."""
    assert CHROMIUM.exists(), f"the pages are tested in a browser: {CHROMIUM} is missing"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(town: Town, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of the town's server in a browser of its own; complaints fail the test."""
    complaints: list[str] = []
    with ExitStack() as stack:

        def visit(path: str, size: dict[str, int] = DESK) -> Page:
            context: BrowserContext = stack.enter_context(
                browser.new_context(viewport=size, locale="en-GB")  # type: ignore[arg-type]
            )
            context.set_default_timeout(PATIENCE_MS)
            context.add_init_script(SAY_VIOLATIONS)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(f"{path}: {error}"))
            page.on("dialog", lambda dialog: complaints.append(f"{path}: {dialog.message}"))
            page.on(
                "console",
                lambda said: (
                    complaints.append(f"{path}: {said.text}") if said.type == "error" else None
                ),
            )
            page.goto(town.server.url + path)
            return page

        yield visit
    assert complaints == []


# --- what people do -----------------------------------------------------------------------------


def sign_up(page: Page, name: str, email: str, heading: str = "Sign up") -> None:
    form = page.locator("#account form").filter(has=page.get_by_role("heading", name=heading))
    form.get_by_label("Name").fill(name)
    form.get_by_label("E-mail").fill(email)
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button").click()
    is_live(page)


def log_in(page: Page, person: dict[str, Any]) -> None:
    form = page.locator("#account form").filter(has=page.get_by_role("heading", name="Log in"))
    form.get_by_label("E-mail").fill(person["email"])
    form.get_by_label("Password").fill(person["password"])
    form.get_by_role("button").click()
    is_live(page)


def is_live(page: Page) -> None:
    expect(page.locator("#link")).to_have_text("live", timeout=PATIENCE_MS)


def book(page: Page, plan: str, concern: str, **choices: str) -> None:
    """Wish and waiver; what costs something leads to Stripe's page."""
    page.get_by_label(re.compile(plan)).check()
    page.get_by_label("What is wrong?").fill(concern)
    for label, choice in choices.items():
        page.get_by_label(label).select_option(label=choice)
    page.get_by_role("button", name="Book", exact=True).click()
    sign(page)


def sign(page: Page) -> None:
    page.get_by_label("Your full name").fill("Ann Author")
    page.get_by_label("I have read this and agree").check()
    page.get_by_role("button", name=re.compile("^Sign")).click()


def pay(page: Page) -> None:
    """On Stripe's page, and back."""
    page.get_by_role("button", name=re.compile("^Pay")).click()
    page.get_by_role("link", name="Go to your booking").click()
    is_live(page)


def offer(page: Page, concern: str) -> Locator:
    return page.locator(".offer").filter(has_text=concern)


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def reads(page: Page, *messages: str) -> None:
    """The whole chat, in order."""
    bodies = page.locator(".chat li:not(.unsent) .body")
    expect(bodies).to_have_text(list(messages), timeout=PATIENCE_MS)


def shows(page: Page | Locator, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible(timeout=PATIENCE_MS)


def lies_within_the_screen(page: Page) -> None:
    """Nothing makes the page itself scroll sideways."""
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], widths


class LossyLine:
    """Between a page and the server: the first frame of each of these types is lost, and with it
    the connection. `lost` are their types, `urls` where the page connected to."""

    def __init__(self, page: Page, loses: tuple[str, ...]) -> None:
        self.lost: list[str] = []
        self.urls: list[str] = []
        self._loses = loses
        self._frames: list[dict[str, Any]] = []
        page.route_web_socket(re.compile("/ws"), self._connected)
        page.reload()

    def said(self, kind: str) -> list[dict[str, Any]]:
        """The page's frames of that type."""
        return [frame for frame in self._frames if frame["type"] == kind]

    def _connected(self, page: WebSocketRoute) -> None:
        server = page.connect_to_server()
        self.urls.append(page.url)
        is_cut = False

        def say(text: str | bytes) -> None:
            if not is_cut:
                self._frames.append(json.loads(text))
                server.send(text)

        def tell(text: str | bytes) -> None:
            nonlocal is_cut
            kind = json.loads(text)["type"]
            if kind in self._loses and kind not in self.lost:
                self.lost.append(kind)
                is_cut = True
                page.close(code=4000)
                server.close()
            elif not is_cut:
                page.send(text)

        page.on_message(say)
        server.on_message(tell)


# --- the stories --------------------------------------------------------------------------------


def test_from_booking_to_rating_between_two_browsers(
    visit: Callable[..., Page], town: Town
) -> None:
    mechanic = visit("/mechanic")
    log_in(mechanic, town.people["mechanics"][-1])
    ann = visit("/customer", PHONE)
    sign_up(ann, f"Ann{TRICK}", "ann@example.org")

    book(ann, "Trial chat", f"It rattles {TRICK}")
    pay(ann)

    shows(ann, "We are looking for a mechanic.")
    expect(ann.locator(".stage .countdown")).to_have_text(re.compile(r"^[1-5]:\d\d$"))
    card = offer(mechanic, "It rattles")
    expect(card).to_contain_text(f"Ann{TRICK}")
    lies_within_the_screen(ann)

    card.get_by_role("button", name="Accept and join").click()
    shows(ann, "1 mechanic connected")
    ann.get_by_role("button", name="Join", exact=True).click()
    shows(ann, "Your session is running.")
    say(ann, f"Do you hear me? {TRICK}")
    reads(mechanic, f"Do you hear me? {TRICK}")
    say(mechanic, "Loud and clear.\nWhen does it rattle?")
    reads(ann, f"Do you hear me? {TRICK}", "Loud and clear.\nWhen does it rattle?")
    ann.reload()
    reads(ann, f"Do you hear me? {TRICK}", "Loud and clear.\nWhen does it rattle?")

    mechanic.get_by_role("button", name="End session").click()
    mechanic.get_by_role("button", name="End it for both?").click()
    shows(ann, "Your session has ended")
    shows(mechanic, "The session has ended.")
    mechanic.get_by_label("Summary").fill(f"A loose shield. {TRICK}")
    mechanic.get_by_role("button", name="Save").click()
    shows(mechanic, "Saved.")

    ann.get_by_role("button", name="Add to favourites").click()
    shows(ann, "She is one of your favourites now.")
    ann.get_by_role("radio", name="5 of 5").check()
    ann.get_by_label("In your words").fill(f"Perfect {TRICK}")
    ann.get_by_role("button", name="Rate").click()
    shows(ann, "You gave 5 of 5.")
    ann.reload()
    shows(ann, f"A loose shield. {TRICK}")
    ann.locator("#after").get_by_role("button", name=re.compile("^Book .* again$")).click()
    shows(ann, "Before we begin")
    lies_within_the_screen(ann)
    sign(ann)
    pay(ann)
    shows(ann, "Your favourite mechanic")
    expect(offer(mechanic, "It rattles")).to_contain_text("You were asked by name")
    for page in (ann, mechanic):
        assert page.locator("img").count() == 0
        assert "token" not in page.url


def test_a_customer_who_waits_sees_why_widens_and_cancels(
    visit: Callable[..., Page], town: Town
) -> None:
    workshop, other = town.people["workshops"][0], town.people["mechanics"][-2]
    theirs = next(m for m in town.people["mechanics"] if m["workshop_id"] == workshop["id"])
    hers, elsewhere = visit("/mechanic"), visit("/mechanic", PHONE)
    log_in(hers, theirs)
    log_in(elsewhere, other)
    bob = visit("/customer")
    sign_up(bob, "Bob", "bob@example.org")
    bob.get_by_label("Who shall help you?").select_option(label="A workshop first, then anyone")
    bob.locator("select[name=workshop]").select_option(workshop["id"])

    book(bob, "Trial chat", "It smells")
    pay(bob)

    shows(bob, "We are asking your workshop first.")
    expect(offer(hers, "It smells")).to_have_class(re.compile("highlighted"))
    assert offer(elsewhere, "It smells").count() == 0
    bob.get_by_role("button", name="Find an available mechanic now").click()
    expect(offer(elsewhere, "It smells")).to_be_visible()
    expect(offer(hers, "It smells")).to_be_visible()

    bob.get_by_text("Cancel this booking").click()
    bob.get_by_role("button", name="Cancel, keep it as credits").click()
    shows(bob, "Your booking was cancelled.")
    expect(offer(hers, "It smells")).to_have_count(0)
    expect(offer(elsewhere, "It smells")).to_have_count(0)
    bob.reload()
    expect(bob.locator("#credits")).to_contain_text("€3.00")


def test_an_operator_sees_the_board_tick_and_lets_a_mechanic_in(
    visit: Callable[..., Page], town: Town
) -> None:
    new = visit("/mechanic", PHONE)
    sign_up(new, f"Mia{TRICK}", "mia@example.org", "Sign up on your own")
    expect(new.locator("#waiting")).to_have_text("Your application waits for an administrator.")
    ops = visit("/ops")
    log_in(ops, town.people["admin"])
    cat = visit("/customer")
    sign_up(cat, f"Cat{TRICK}", "cat@example.org")

    book(cat, "Free question", "It is silent")

    row = ops.locator("#board tr").filter(has_text="Cat")
    expect(row).to_contain_text(f"Cat{TRICK}")
    expect(row).to_contain_text("open")
    first = row.locator(".countdown").inner_text()
    expect(row.locator(".countdown")).not_to_have_text(first)
    row.get_by_role("button", name="Explain").click()
    expect(ops.locator("#explain")).to_contain_text("broadcast")

    waiting = ops.locator("#mechanics tr").filter(has_text="Mia")
    waiting.get_by_role("button", name="Approve").click()
    expect(waiting).to_have_count(0)
    expect(offer(new, "It is silent")).to_be_visible()
    offer(new, "It is silent").get_by_role("button", name="Accept", exact=True).click()
    expect(row).to_contain_text(f"Mia{TRICK}")
    shows(cat, f"Mia{TRICK}")
    ops.get_by_role("button", name="Pay out now").click()
    ops.get_by_role("button", name="Pay everybody what is due?").click()
    shows(ops, "payouts made")
    for page in (ops, new, cat):
        assert page.locator("img").count() == 0


def test_on_a_lossy_line_an_accept_and_a_message_count_once(
    visit: Callable[..., Page], town: Town
) -> None:
    mechanic = visit("/mechanic")
    line = LossyLine(mechanic, loses=("offer.won", "chat.message"))
    log_in(mechanic, town.people["mechanics"][-3])
    dan = visit("/customer", PHONE)
    sign_up(dan, "Dan", "dan@example.org")
    book(dan, "Free trial chat", "It drips")

    offer(mechanic, "It drips").get_by_role("button", name="Accept and join").click()
    shows(mechanic, "Dan is yours.")
    dan.get_by_role("button", name="Join", exact=True).click()
    say(mechanic, "Is it oil?")

    reads(dan, "Is it oil?")
    reads(mechanic, "Is it oil?")
    say(dan, "It smells of petrol.")
    reads(mechanic, "Is it oil?", "It smells of petrol.")
    reads(dan, "Is it oil?", "It smells of petrol.")
    assert line.lost == ["offer.won", "chat.message"]
    assert len(line.said("offer.accept")) == len(line.said("chat.send")) == 2
    assert len({frame["accept_id"] for frame in line.said("offer.accept")}) == 1
    assert len({frame["client_message_id"] for frame in line.said("chat.send")}) == 1
    assert all(frame["token"] for frame in line.said("hello"))
    assert all("?" not in url for url in line.urls)


# --- what is served -----------------------------------------------------------------------------

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@pytest.mark.parametrize("path", ["/", "/customer", "/mechanic", "/ops", "/intake/waiver"])
def test_a_page_carries_the_strict_policy_and_is_sent_once(town: Town, path: str) -> None:
    attacker = Attacker(town)
    first = attacker.call("GET", path)
    etag = first.headers["etag"].encode()
    again = attacker.call("GET", path, headers=((b"If-None-Match", b'"other", W/' + etag),))
    changed = attacker.call("GET", path, headers=((b"If-None-Match", b'"other"'),))

    assert first.headers["content-type"] == "text/html; charset=utf-8"
    for answer in (first, again):
        assert answer.headers["content-security-policy"] == CSP
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
    assert (first.status, again.status, again.body) == (200, 304, b"")
    assert (changed.status, changed.body) == (200, first.body)


def test_an_unknown_file_is_not_found(town: Town) -> None:
    attacker = Attacker(town)

    for name in ("nothing.js", "..%2fschema.sql", "%2e%2e", "client.js%00"):
        assert attacker.call("GET", f"/web/{name}").status == 404


def test_the_installed_package_has_the_pages(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert packed >= {f"dispatch/web/{file.name}" for file in (root / "web").iterdir()}
    assert "dispatch/schema.sql" in packed
