"""What people wrote, as it may be shown on a terminal.

One job: nothing that somebody else wrote moves the cursor, colours the screen or begins a line of
its own. Imports nothing of ours.
"""


def plain(text: str) -> str:
    """The text on one line; what cannot be seen is written as Python writes it: `\\n`, `\\x1b`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
