"""How money is divided, and divided back: to the cent, whatever the amount and the fee."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.money import Split, give_back, split

OURS, THEIRS = uuid4(), uuid4()

amounts = st.integers(0, 10**8)
fees = st.integers(0, 10_000)
workshops = st.sampled_from([None, OURS, THEIRS])
splits = st.builds(
    split,
    amounts,
    serving_workshop_id=workshops,
    preferred_workshop_id=workshops,
    fee_basis_points=fees,
)


def parts(of: Split) -> tuple[int, int, int, int]:
    """Platform's fee, referral, the workshop's net, the mechanic's net."""
    return (
        of.platform_fee_cents,
        of.referral_cents,
        of.workshop_net_cents,
        of.mechanic_net_cents,
    )


@pytest.mark.parametrize(
    ("serving", "preferred", "expected"),
    [
        pytest.param(None, None, (300, 0, 0, 1200), id="an independent mechanic has 80 %"),
        pytest.param(OURS, None, (300, 0, 1200, 0), id="a workshop has 80 %"),
        pytest.param(OURS, OURS, (300, 0, 1200, 0), id="also where it was named"),
        pytest.param(None, OURS, (300, 150, 0, 1050), id="an independent one serves for another"),
        pytest.param(THEIRS, OURS, (300, 150, 0, 1050), id="another's mechanic has it herself"),
    ],
)
def test_who_serves_and_who_was_named_decide_who_has_what(
    serving: UUID | None, preferred: UUID | None, expected: tuple[int, int, int, int]
) -> None:
    divided = split(1500, serving_workshop_id=serving, preferred_workshop_id=preferred)

    assert parts(divided) == expected


@pytest.mark.parametrize(
    ("gross", "fee", "expected"),
    [
        (0, 2000, (0, 0, 0, 0)),
        (1, 2000, (0, 0, 0, 1)),
        (5, 2000, (1, 1, 0, 3)),  # 0.5 of the referral is rounded up
        (5, 3000, (2, 1, 0, 2)),  # 1.5 of the fee too
        (333, 1234, (41, 33, 0, 259)),
        (100, 0, (0, 10, 0, 90)),
        (100, 9500, (95, 5, 0, 0)),  # no more than there is
        (100, 10_000, (100, 0, 0, 0)),
    ],
)
def test_shares_are_rounded_half_up_and_never_take_more_than_there_is(
    gross: int, fee: int, expected: tuple[int, int, int, int]
) -> None:
    divided = split(
        gross, serving_workshop_id=None, preferred_workshop_id=OURS, fee_basis_points=fee
    )

    assert parts(divided) == expected


@given(
    gross=amounts,
    serving=workshops,
    preferred=workshops,
    fee=fees,
)
def test_the_parts_are_the_whole_and_none_is_below_zero(
    gross: int, serving: UUID | None, preferred: UUID | None, fee: int
) -> None:
    divided = split(
        gross, serving_workshop_id=serving, preferred_workshop_id=preferred, fee_basis_points=fee
    )

    assert sum(parts(divided)) == gross
    assert min(parts(divided)) >= 0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (0, (0, 0, 0, 0)),
        (500, (100, 50, 0, 350)),
        (1499, (300, 150, 0, 1049)),
        (1500, (300, 150, 0, 1050)),
        (5, (1, 0, 0, 4)),  # 0.5 of a referral is rounded down, 3.5 of the mechanic's up
    ],
)
def test_what_goes_back_is_given_in_proportion(
    returned: int, expected: tuple[int, int, int, int]
) -> None:
    referred = split(1500, serving_workshop_id=None, preferred_workshop_id=OURS)

    assert parts(give_back(referred, returned)) == expected


@given(divided=splits, data=st.data())
def test_everybody_gives_back_what_is_asked_in_all_and_more_only_when_more_goes_back(
    divided: Split, data: st.DataObject
) -> None:
    gross = sum(parts(divided))
    less, more = sorted(data.draw(st.tuples(st.integers(0, gross), st.integers(0, gross))))

    first, second = parts(give_back(divided, less)), parts(give_back(divided, more))

    assert (sum(first), sum(second)) == (less, more)
    for had, gave, gives in zip(parts(divided), first, second, strict=True):
        assert 0 <= gave <= had
        assert 0 <= gives <= had
    assert all(gave <= gives for gave, gives in zip(first[1:], second[1:], strict=True))
    assert give_back(divided, gross) == divided
