"""Requests that nobody thought of, to every endpoint, judged by the server's own description.

One job: let schemathesis make requests, right and wrong ones, of what `/openapi.json` says, send
them as somebody who may, and collect what breaks a promise: an error of the server's, an answer
that is not described, wrong data that is taken, a door that is open. Whether right data is taken
is not judged: most of it names things that are not there.
"""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok

NOT_JUDGED = {
    "positive_data_acceptance",
    # They need what one request made for the next, which is a way of its own to ask.
    "use_after_free",
    "ensure_resource_availability",
    "object_level_authorization",
}
EXAMPLES = 4  # of one endpoint before the next one's turn
REQUEST_SECONDS = 20.0
MAX_FINDINGS = 50
SHOWN_CHARS = 1000
# A feature may be switched off (501), and what is refused is refused, whatever its code.
NO_FAULT = ["2xx", "3xx", "4xx", "501"]
REFUSED = ["4xx", "501"]

TokenOf = Callable[[str], str]


@dataclass
class Found:
    """What was asked, how often it was answered how, and what was wrong."""

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def fuzz(
    url: str,
    token_of: TokenOf,
    *,
    seconds: float,
    ids: Mapping[str, Sequence[str]],
    first_seed: int = 0,
    document: Mapping[str, Any] | None = None,
) -> Found:
    """Asks for so many seconds, all endpoints in turn; at least once round.

    `token_of` gives the token of somebody in a role. `ids` are some that there are, by the word of
    the path that stands before them (`sessions`). The same seed asks the same of the same server,
    which is held to the description that it gives, or to this `document`.
    """
    with requests.Session() as session:
        if document is None:
            document = session.get(f"{url}/openapi.json", timeout=REQUEST_SECONDS).json()
        turns = list(_turns(url, document))
        found = Found()
        until = time.monotonic() + seconds
        for number in itertools.count(first_seed):
            for operation, mode in turns:
                if len(found.findings) >= MAX_FINDINGS:
                    return found
                if number > first_seed and time.monotonic() >= until:
                    return found
                _ask(_Asking(operation, mode, session, token_of, ids, found), number)
    raise AssertionError("it counts without end")


def _turns(url: str, document: Mapping[str, Any]) -> Iterator[tuple[Any, GenerationMode]]:
    """Each endpoint with right data, then with wrong. A token is never what is wrong in these: it
    is we who show it."""
    for right, wrong in zip(
        _operations(url, document), _operations(url, _without_doors(document)), strict=True
    ):
        yield right, GenerationMode.POSITIVE
        yield wrong, GenerationMode.NEGATIVE


def _operations(url: str, document: Mapping[str, Any]) -> list[Any]:
    schema = schemathesis.openapi.from_dict(dict(document))
    schema.config.update(base_url=url)
    schema.config.checks.not_a_server_error.expected_statuses = NO_FAULT
    schema.config.checks.negative_data_rejection.expected_statuses = REFUSED
    return [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]


def _without_doors(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **document,
        "paths": {
            path: {method: {**told, "security": []} for method, told in operations.items()}
            for path, operations in document["paths"].items()
        },
    }


@dataclass(frozen=True)
class _Asking:
    """One endpoint's turn, with data that is right or wrong."""

    operation: Any
    mode: GenerationMode
    session: requests.Session
    token_of: TokenOf
    ids: Mapping[str, Sequence[str]]
    found: Found

    def known_ids(self) -> Sequence[str]:
        """Ids that its path may name; what is wrong on purpose stays wrong."""
        if self.mode is GenerationMode.NEGATIVE:
            return ()
        words = self.operation.path.split("/")
        return self.ids.get(words[words.index("{id}") - 1], ()) if "{id}" in words else ()

    def send(self, case: Any, role: str | None) -> None:
        """One request as somebody in this role, judged."""
        headers = {} if role is None else {"Authorization": f"Bearer {self.token_of(role)}"}
        label = self.operation.label
        self.found.asked[label] += 1
        try:
            response = case.call(
                session=self.session,
                headers=headers,
                timeout=REQUEST_SECONDS,
                allow_redirects=False,
            )
            self.found.statuses[response.status_code] += 1
            case.validate_response(response, checks=_checks(), headers=headers)
        except FailureGroup as group:
            self.found.findings += [
                self._told(case, headers, str(each)) for each in group.exceptions
            ]
        except (Failure, requests.RequestException) as failure:
            self.found.findings.append(self._told(case, headers, str(failure)))

    def _told(self, case: Any, headers: Mapping[str, str], what: str) -> str:
        curl = case.as_curl_command(headers=dict(headers))[:SHOWN_CHARS]
        return f"{self.operation.label}: {what}\n    {curl}"


def _checks() -> list[Any]:
    return [
        check
        for name, check in zip(CHECKS.get_all_names(), CHECKS.get_all(), strict=True)
        if name not in NOT_JUDGED
    ]


def _ask(asking: _Asking, number: int) -> None:
    roles = asking.operation.definition.raw["x-roles"] or [None]

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=asking.operation.as_strategy(generation_mode=asking.mode),
        role=st.sampled_from(roles),
        known=st.sampled_from([None, *asking.known_ids()]),
    )
    def ask(case: Any, role: str | None, known: str | None) -> None:
        if known is not None and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = known
        asking.send(case, role)

    with contextlib.suppress(Unsatisfiable):  # nothing can be wrong where nothing is taken
        ask()


def lines(found: Found) -> Iterator[str]:
    """The run in a few words, and everything that was wrong."""
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(found.statuses.items()))
    yield f"{found.asked.total()} requests to {len(found.asked)} endpoints ({statuses})"
    yield from found.findings
