"""docs/stories.md: what it says around the transcripts, and the transcripts in it."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.stories.five import STORIES
from tests.stories.play import Tale

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "stories.md"

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
