"""docs/stories.md and docs/life.md: what they say around the transcripts, and these in them."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.stories.five import STORIES
from tests.stories.play import Tale

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "stories.md"
LIFE_DOCUMENT: Final = DOCUMENT.with_name("life.md")

_PREFACE: Final = """\
# Five stories

Five bookings that do not go smoothly, as the people in them see them: every frame that the customer
and the mechanics get over their websockets, on two nodes, with the default configuration: ten
minutes for a favourite who is here, thirty for one who is waited for, three attempts five seconds
apart, two hours for the whole request. Ann's node is Max's; Fay and Ida are on the other.

`python -m tests.stories` plays them and prints this page; `tests/stories/test_stories.py` plays
them too and compares line by line. Nothing is slept: time passes by the database's clock. Times are
relative to the booking (`+mm:ss`), deadlines to the last full five seconds; of status frames that
replace one another within a moment the last is told, and one that says nothing new is left out.
"""


_LIFE_PREFACE: Final = """\
# The life of a session

From an invite to booking the same mechanic again: Gus of the workshop North invites Mia by e-mail,
she signs up, Ann books a chat of ten minutes and pays, the two talk, and Ann would like her again.
Told as what each of them says (`→`) and gets (`←`) over HTTP and websockets, and the rows that it
leaves (`=`), on two nodes, with the default configuration, a stand-in for Stripe and a mail server.
Mia's connection breaks in the middle of their talk; she comes back on the other node and asks for
what she missed.

`python -m tests.stories life` plays it and prints this page; `tests/stories/test_life.py` plays it
too and compares line by line. Nothing is slept: time passes by the database's clock. Times are
relative to the booking, which begins when the payment is known.
"""


def life_document(lines: Sequence[str]) -> str:
    """The whole page with this transcript."""
    text = "\n".join(lines)
    return f"{_LIFE_PREFACE}\n```text\n{text}\n```\n"


def document(transcripts: Sequence[Sequence[str]]) -> str:
    """The whole page with these transcripts, one for each of the stories."""
    numbered = enumerate(zip(STORIES, transcripts, strict=True), 1)
    return _PREFACE + "".join(_section(n, tale, lines) for n, (tale, lines) in numbered)


def transcripts(page: str) -> list[list[str]]:
    """The lines of each story, as the page has them."""
    blocks = page.split("```text\n")[1:]
    return [block.split("\n```")[0].splitlines() for block in blocks]


def _section(number: int, tale: Tale, lines: Sequence[str]) -> str:
    title, _, premise = (inspect.getdoc(tale) or "").partition("\n\n")
    text = "\n".join(lines)
    return f"\n## {number}. {title}\n\n{premise}\n\n```text\n{text}\n```\n"
