"""What people see of a booking."""

import pytest
from msgspec.structs import replace

from dispatch import frames
from dispatch.core.types import Role
from tests.unit.builders import T0, active, completed, entry_of


@pytest.mark.parametrize(
    ("is_favorite", "is_rated", "prompt"),
    [
        (False, False, "favorite"),
        (False, True, "favorite"),
        (True, False, "rate"),
        (True, True, None),
    ],
)
def test_after_the_end_the_customer_is_asked_for_what_she_has_not_said(
    is_favorite: bool, is_rated: bool, prompt: str | None
) -> None:
    running = entry_of(active())
    ended = entry_of(completed())
    display = replace(ended.display, is_favorite=is_favorite, is_rated=is_rated)
    ended = replace(ended, display=display)

    assert frames.session_state(ended, Role.CUSTOMER, T0).prompt == prompt
    assert frames.session_state(ended, Role.MECHANIC, T0).prompt is None
    assert frames.session_state(running, Role.CUSTOMER, T0).prompt is None
