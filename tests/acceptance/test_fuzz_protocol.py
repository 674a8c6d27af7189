"""Frames that nobody thought of, over real sockets: each is answered, as it is described."""

from collections.abc import Iterator

import pytest

from loadtest.fuzz_protocol import Description, fuzz
from tests.acceptance.actors import Town, new_id
from tests.acceptance.attacker import Attacker
from tests.acceptance.conftest import BuildTown

SECONDS = 15.0


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    """Nobody is too fast here."""
    with build_town(rate_messages=0, rate_connects=0) as town:
        yield town


def test_whatever_is_said_is_answered_as_it_is_described(town: Town) -> None:
    attacker = Attacker(town)
    description = Description(attacker.call("GET", "/asyncapi.json").json)

    found = fuzz(town.server.url, lambda role: str(attacker.token(role)), seconds=SECONDS)

    assert found.findings == []
    assert found.sent.keys() >= description.senders.keys()
    assert {"welcome", "pong", "ok", "error", "offer", "offer.lost"} <= found.got.keys()
    assert found.closed.keys() <= {4400, 4401}
    assert "Traceback" not in attacker.log()
    assert attacker.call("GET", "/readyz").status == 200


def test_a_frame_that_is_not_as_described_is_found(town: Town) -> None:
    """The fuzzer itself."""
    description = Description(Attacker(town).call("GET", "/asyncapi.json").json)
    lost = {"type": "offer.lost", "offer_id": new_id(), "accept_id": new_id(), "reason": "taken"}
    error = {"type": "error", "code": "forbidden", "message": "no"}

    assert description.faults(lost) == description.faults(error) == []
    assert description.faults(lost | {"reason": "bad luck"})
    assert description.faults({**error, "code": "teapot"})
    assert description.faults({"type": "offer.stolen"})
    assert description.faults({name: lost[name] for name in ("type", "offer_id", "reason")})
