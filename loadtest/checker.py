"""Judges a history: every promise that clients can see, as a rule over what they saw.

It knows nothing of the server; what it cannot know from the history it does not hold against
anybody. Imports the rules. Raises nothing of its own: a broken promise is a row, never an error.
"""

from loadtest import rules_booking, rules_race, rules_routing
from loadtest.cases import Cases
from loadtest.violation import Limits, Rule, Violation

RULES: tuple[Rule, ...] = (
    rules_race.round_identity,
    rules_race.two_winners,
    rules_race.answered_once,
    rules_race.too_many_verdicts,
    rules_race.verdict_flipped,
    rules_race.winner_told_lost,
    rules_race.never_told,
    rules_race.ghost_offer,
    rules_race.won_after_end,
    rules_race.over_capacity,
    rules_booking.lost_booking,
    rules_booking.doubled_booking,
    rules_booking.version_fell,
    rules_booking.unexplained_end,
    rules_booking.customer_not_told,
    rules_booking.reopened_without_cause,
    rules_routing.priority_leak,
    rules_routing.workshop_leak,
    rules_routing.wrong_score,
    rules_routing.early_fallback,
    rules_routing.offered_after_no,
    rules_routing.deadline_differs,
)


def check(cases: Cases, limits: Limits | None = None) -> list[Violation]:
    """Every violation in a sorted history, rule by rule. Empty means that all promises held."""
    limits = limits or Limits()
    return [violation for rule in RULES for violation in rule(cases, limits)]
