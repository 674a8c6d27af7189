"""When events are delivered: once and at once, unless a test wants them otherwise.

Its one job: how often, how late and in which order. Imports msgspec and the standard library; keeps
its settings in memory, so a restart delivers plainly again.
"""

import random
from typing import Annotated

from msgspec import Meta, Struct


class DeliverySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """For events that happen from now on: each is delivered `copies` times, each copy at a moment
    of its own within `shuffle_seconds`, drawn from `seed`. While `held`, nothing is delivered."""

    copies: Annotated[int, Meta(ge=1, le=100)] = 1
    shuffle_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    seed: int = 0
    held: bool = False


class Schedule:
    """The settings in force, and the drawing of moments from them."""

    def __init__(self) -> None:
        self.set(DeliverySettings())

    def set(self, settings: DeliverySettings) -> None:
        """From now on like this; the drawing starts anew."""
        self.settings = settings
        self._random = random.Random(settings.seed)

    def due_times(self, now: float) -> list[float]:
        """When each copy of an event of `now` is due."""
        window = self.settings.shuffle_seconds
        return [now + self._random.uniform(0, window) for _ in range(self.settings.copies)]
