"""How the money for a served session is divided, and divided back when it goes back (M1, M3).

One job: the arithmetic, in whole cents, that `calculate_revenue_split` and `returned_share` in
schema.sql do where the rows are; the books hold the two against each other. Parts always add up to
the cent. Fees are basis points: hundredths of a percent. Imports nothing of ours.
"""

from typing import Final
from uuid import UUID

from msgspec import Struct

FEE_BASIS_POINTS: Final = 2000
REFERRAL_BASIS_POINTS: Final = 1000
_WHOLE: Final = 10_000


class Split(Struct, frozen=True, kw_only=True):
    """Who has what of an amount, in cents: `workshop_net_cents` where the workshop serves,
    `mechanic_net_cents` where the mechanic is paid herself, `referral_cents` of the workshop that
    the customer had named and that did not serve."""

    platform_fee_cents: int
    referral_cents: int
    workshop_net_cents: int
    mechanic_net_cents: int


def split(
    gross_cents: int,
    *,
    serving_workshop_id: UUID | None,
    preferred_workshop_id: UUID | None,
    fee_basis_points: int = FEE_BASIS_POINTS,
) -> Split:
    """The parts of what a customer paid. Shares are rounded half up; who serves has the rest."""
    assert gross_cents >= 0
    assert 0 <= fee_basis_points <= _WHOLE
    fee = _share(gross_cents, fee_basis_points)
    rest = gross_cents - fee
    is_referred = preferred_workshop_id not in (None, serving_workshop_id)
    referral = min(_share(gross_cents, REFERRAL_BASIS_POINTS), rest) if is_referred else 0
    rest -= referral
    by_workshop = serving_workshop_id is not None and not is_referred
    return Split(
        platform_fee_cents=fee,
        referral_cents=referral,
        workshop_net_cents=rest if by_workshop else 0,
        mechanic_net_cents=0 if by_workshop else rest,
    )


def give_back(parts: Split, returned_cents: int) -> Split:
    """What of each part goes back when so much of the whole does, as one sum: it depends on that
    alone, not on the steps in which it came to it.

    Each gives in proportion, the one who serves rounded half up and a referral half down: so what
    remains for the platform is never less than nothing and never more than its fee.
    """
    gross = (
        parts.platform_fee_cents
        + parts.referral_cents
        + parts.workshop_net_cents
        + parts.mechanic_net_cents
    )
    assert 0 <= returned_cents <= gross
    referral = _returned(parts.referral_cents, gross, returned_cents, half=-1)
    workshop = _returned(parts.workshop_net_cents, gross, returned_cents)
    mechanic = _returned(parts.mechanic_net_cents, gross, returned_cents)
    return Split(
        platform_fee_cents=returned_cents - referral - workshop - mechanic,
        referral_cents=referral,
        workshop_net_cents=workshop,
        mechanic_net_cents=mechanic,
    )


def _share(cents: int, basis_points: int) -> int:
    return (2 * cents * basis_points + _WHOLE) // (2 * _WHOLE)


def _returned(part: int, gross: int, returned: int, *, half: int = 0) -> int:
    return 0 if gross == 0 else (2 * part * returned + gross + half) // (2 * gross)
