"""The table of goals: what is wanted, what `results/*.json` say, and whether it is reached.

Measures nothing. Imports `report` for where the results are.
"""


def main(*, write: bool) -> int:
    """Prints the table."""
    raise NotImplementedError
