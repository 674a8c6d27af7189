"""Money with nodes that die at every step: a seeded part of the long runs of `loadtest.money`."""

import pytest

from loadtest.money import payout_scene, real_kills, rules, scene
from loadtest.money.campaign import Play, Report, perform, unmatched
from loadtest.money.plan import draw

PERMUTATIONS = 40
PAYOUTS = 15


async def played(play: Play, seeds: range, database_url: str, redis_url: str) -> list[Report]:
    reports: list[Report] = []
    await perform(play, seeds, database_url, redis_url, reports.append)
    return reports


@pytest.mark.parametrize(
    ("play", "seeds"),
    [
        pytest.param(scene.play, range(1, 1 + PERMUTATIONS), id="payments"),
        pytest.param(payout_scene.play, range(1, 1 + PAYOUTS), id="payouts"),
    ],
)
async def test_each_cent_has_its_place_whoever_dies_in_the_middle(
    database_url: str, redis_url: str, play: Play, seeds: range
) -> None:
    reports = await played(play, seeds, database_url, redis_url)

    broken = {report.seed: report.violations for report in reports if report.violations}
    assert broken == {}
    assert [report.seed for report in reports] == list(seeds)
    deaths = {step for report in reports for step in report.deaths}
    assert len(deaths) >= 8, "nodes died at many different steps"


async def test_each_cent_has_its_place_when_a_server_is_killed_while_webhooks_arrive(
    database_url: str, redis_url: str
) -> None:
    async with real_kills.opened(database_url, redis_url, seed=7) as town:
        truth = await real_kills.perform(town, kills=1, patient=False)
        mismatches = await unmatched(town.db)

    assert rules.check(truth) == []
    assert mismatches == []
    assert town.kills == 1
    assert len(truth.money) >= real_kills.CUSTOMERS


def test_the_same_seed_is_the_same_plan() -> None:
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]
    assert len({draw(seed) for seed in range(50)}) == 50
