"""What a push service's wish to be left alone means."""

from datetime import UTC, datetime

import pytest

from dispatch.push_client import retry_after_seconds

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("120", 120),
        ("9" * 400, float("inf")),
        ("Fri, 20 Nov 2026 12:01:30 GMT", 90),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0),
        ("Fri, 20 Nov 99999 12:00:00 GMT", 0),
        ("-1", 0),
        ("1.5", 0),
        ("nan", 0),
        ("\N{ARABIC-INDIC DIGIT ONE}", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_it_is_seconds_or_a_date_and_nonsense_is_nothing(
    header: str | None, seconds: float
) -> None:
    assert retry_after_seconds(header, NOW) == seconds
