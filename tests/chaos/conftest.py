"""The towns of the acceptance tests, for faults."""

from tests.acceptance.conftest import build_town, city, seeded_town, town

__all__ = ["build_town", "city", "seeded_town", "town"]
