"""What goes wrong on request: for the next calls of a path, one of the faults of a network.

Its one job: keep what was ordered and say what befalls a call. Imports msgspec, `objects` and
`params`; keeps its orders in memory.
"""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from .params import ApiError

MAX_ORDERS = 1000


Kind = Literal[
    "late", "late_start", "drop_reply", "drop_request", "fail", "rate_limit", "refuse", "pending"
]


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """What befalls the next `times` calls of `method` to a `path`, in which `*` is anything.

    late            done, and answered after `late_ms`; its key is in use for so long
    late_start      the same, but done only then
    drop_reply      done, and the connection closed without a word
    drop_request    the connection closed without a word, and nothing done
    fail            500 and nothing done
    rate_limit      429 and nothing done
    refuse          refused with `status`, `code` and `message`, as something that was tried:
                    kept for its key, but for a 409 or 429, which says "later"
    pending         a refund that is made stays pending
    """

    path: Annotated[str, Meta(min_length=1, max_length=200)]
    do: Kind
    method: Literal["GET", "POST"] = "POST"
    times: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    late_ms: Annotated[int, Meta(ge=0, le=120_000)] = 0
    status: Literal[400, 402, 404, 409, 429, 500, 503] = 400
    code: Annotated[str, Meta(max_length=100)] | None = None
    message: Annotated[str, Meta(max_length=500)] = "Refused, as was ordered."

    @property
    def is_kept(self) -> bool:
        """Whether its answer is what the key gives from now on."""
        return self.do == "refuse" and self.status not in (409, 429)

    @property
    def error(self) -> ApiError | None:
        """The answer instead of the handler's, for those that are one."""
        match self.do:
            case "fail":
                return ApiError("An unknown error occurred", status=500, kind="api_error")
            case "rate_limit":
                return ApiError("Request rate limit exceeded.", status=429, code="rate_limit")
            case "refuse":
                return ApiError(self.message, status=self.status, code=self.code)
            case _:
                return None


class Faults:
    """The orders that are not used up, the oldest first."""

    def __init__(self) -> None:
        self._orders: list[tuple[Fault, int]] = []

    def order(self, fault: Fault) -> None:
        """For calls from now on, after those that were ordered before."""
        if len(self._orders) >= MAX_ORDERS:
            raise ApiError(f"There are {MAX_ORDERS} orders already.", status=409)
        self._orders.append((fault, fault.times))

    def befalls(self, method: str, path: str) -> Fault | None:
        """The fault for this call, which uses up one of its times."""
        for index, (fault, left) in enumerate(self._orders):
            if fault.method == method and fnmatchcase(path, fault.path):
                self._orders[index : index + 1] = [(fault, left - 1)] if left > 1 else []
                return fault
        return None

    def left(self) -> list[Fault]:
        """What is still to come, each with the times that are left."""
        return [replace(fault, times=left) for fault, left in self._orders]

    def clear(self) -> None:
        self._orders.clear()
