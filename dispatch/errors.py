"""The typed errors that clients and operators can meet.

Its one job: name what went wrong, once, so that `http` and `websocket` can answer and the command
line can explain without knowing who raised it. It imports nothing of ours. A bug is an `assert`,
never one of these.

    DispatchError          code, message, status
    ├── ConfigError        wrong or missing settings, all of them together
    ├── StartError         the operator can mend it: a port in use, a folder that is locked
    ├── Unavailable        503 unavailable_now     Postgres (or what else is needed) is away
    ├── Refused            502 refused             another's server understood, and said no
    ├── BadRequest         400 bad_request
    ├── NotAuthenticated   401 not_authenticated
    ├── Forbidden          403 forbidden
    ├── NotFound           404 not_found
    ├── Conflict           409 the code passed in, with fields beside `error`
    ├── TooSlow            408 too_slow
    ├── TooLarge           413 too_large
    │   └── HeadTooLarge   431 too_large
    ├── RateLimited        429 rate_limited
    └── NotConfigured      501 not_configured      the feature is switched off here
"""

from collections.abc import Mapping, Sequence
from typing import Final


class DispatchError(Exception):
    """Base of all: `code` is the wire's name, `status` the HTTP status, `message` for people."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class ConfigError(DispatchError):
    """The configuration cannot be used. `problems` holds every reason, none with a secret in it."""

    code = "wrong_configuration"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class StartError(DispatchError):
    """The process cannot start or its command cannot be done; the message says what to mend."""

    code = "cannot_start"


class Unavailable(DispatchError):
    """A server that we need is away. Nothing was changed; trying again later is right.

    `retry_after_seconds`: sooner is useless, where that server said so.
    """

    status = 503
    code = "unavailable_now"

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Refused(DispatchError):
    """Another's server understood and refused: the same again will be refused again.

    `reason` is its own name for why (may be empty); `mended_by_time`: except that later is right.
    """

    status = 502
    code = "refused"

    def __init__(self, message: str, *, reason: str = "", mended_by_time: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.mended_by_time = mended_by_time


class BadRequest(DispatchError):
    """What was sent cannot be understood or is out of range."""

    status = 400
    code = "bad_request"


class NotAuthenticated(DispatchError):
    """No token, or one that is not (or no longer) good."""

    status = 401
    code = "not_authenticated"


class Forbidden(DispatchError):
    """We know who asks, and this role may not."""

    status = 403
    code = "forbidden"


class NotFound(DispatchError):
    """There is no such thing, or it is somebody else's: the same answer for both."""

    status = 404
    code = "not_found"

    def __init__(self, message: str = "not found", *, code: str | None = None) -> None:
        super().__init__(message, code=code)


class Conflict(DispatchError):
    """The state does not allow it. `fields` are merged beside `error` in the answer."""

    status = 409

    def __init__(
        self, code: str, message: str, *, fields: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.fields: dict[str, object] = dict(fields or {})


class TooLong(DispatchError):
    """A text has more characters than it may."""

    status = 400
    code = "too_long"


class TooSlow(DispatchError):
    """A request that did not come whole in its time."""

    status = 408
    code = "too_slow"


class TooLarge(DispatchError):
    """More bytes than we read."""

    status = 413
    code = "too_large"


class HeadTooLarge(TooLarge):
    """More of a request's head than we read, or too many headers."""

    status = 431


class RateLimited(DispatchError):
    """Too many in too short a time."""

    status = 429
    code = "rate_limited"


class NotConfigured(DispatchError):
    """The feature exists and is switched off here: its settings are missing."""

    status = 501
    code = "not_configured"


# Every code that an answer over HTTP may have, by its status. What is not among the classes above
# is the code of a `Conflict`, or one that says more than its class.
STATUSES: Final[Mapping[str, int]] = {
    code: status
    for status, codes in {
        400: ("bad_request", "nothing_to_pay", "too_long"),
        401: ("not_authenticated",),
        403: ("forbidden",),
        404: ("not_found", "mechanic_gone", "no_earlier_session"),
        405: ("method_not_allowed",),
        408: ("too_slow",),
        409: (
            "active_session_exists",
            "already_booked",
            "already_granted",
            "already_joined",
            "already_rated",
            "busy",
            "cancelled",
            "email_taken",
            "expired",
            "experiment_started",
            "insufficient_credits",
            "no_video",
            "not_completed",
            "not_eligible",
            "not_open",
            "not_pending",
            "not_started",
            "nothing_to_widen",
            "payment_pending",
            "plan_gone",
            "session_ended",
            "slot_full",
            "slot_over",
            "taken",
            "too_many_favorites",
            "unavailable",
            "waiver_required",
            "workshop_not_active",
        ),
        413: ("too_large",),
        429: ("rate_limited",),
        500: ("internal",),
        501: ("not_configured",),
        502: ("refused", "payment_failed"),
        503: ("unavailable_now", "not_ready"),
    }.items()
    for code in codes
}
