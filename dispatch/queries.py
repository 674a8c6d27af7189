"""The SQL of this package, each query named and described in a file of `dispatch/sql/`.

One job: read `sql/NAME.sql` into a mapping from query name to text. A query starts with the line
`-- name: some_name`; the comment lines that follow describe it. A query without a name or a
description, and a name used twice, are bugs and fail at import.
"""

from importlib.resources import files

_MARK = "-- name: "


def load(name: str) -> dict[str, str]:
    """The queries of `sql/{name}.sql` by their names, in the order of the file."""
    text = files("dispatch").joinpath("sql", f"{name}.sql").read_text("utf-8")
    queries: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + _MARK)[1:]:
        title, _, body = part.partition("\n")
        assert title not in queries, f"{name}.sql names {title} twice"
        assert body.startswith("-- "), f"{name}.sql does not describe {title}"
        queries[title] = body.strip()
    return queries
