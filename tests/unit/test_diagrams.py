"""What the documents draw of the code is what the code says."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "docs" / "make_diagrams.py"


def test_the_diagrams_and_tables_of_the_lifecycle_are_current() -> None:
    checked = subprocess.run([sys.executable, PROGRAM, "--check"], check=False)

    assert checked.returncode == 0, f"run python {PROGRAM.relative_to(PROGRAM.parents[1])}"
