"""Events: what happened, as Stripe tells it.

Its one job: make the event of each change and owe its delivery; and Stripe's 404. Imports
`objects`, `params` and `ledger`; to be called inside the transaction of the change.
"""

import msgspec
from msgspec import Struct

from . import objects
from .ledger import Ledger
from .objects import Cause, Json
from .params import ApiError


class Happened(Struct, frozen=True):
    """One event to be told: about `shown`, which was `before` until now (null when it is new)."""

    kind: str
    shown: Json
    before: Json | None = None

    @property
    def previous(self) -> Json | None:
        """The attributes that changed, as they were."""
        if self.before is None:
            return None
        return {key: old for key, old in self.before.items() if self.shown.get(key) != old}


def tell(
    ledger: Ledger,
    *happened: Happened,
    api_version: str,
    now: float,
    cause: Cause | None = None,
    account: str | None = None,
) -> None:
    """Owe an event for each; `account` is the connected account in which it happened.

    Indented like Stripe's, so that a receiver who verifies anything but the raw bytes fails here
    too.
    """
    for one in happened:
        event = objects.event(
            one.kind,
            one.shown,
            created=int(now),
            api_version=api_version,
            cause=cause or Cause(),
            previous=one.previous,
            account=account,
        )
        body = msgspec.json.format(msgspec.json.encode(event), indent=2)
        ledger.add_event(event["id"], one.kind, body, account=account, now=now)


def missing(kind: str, object_id: str, *, param: str, status: int = 404) -> ApiError:
    """Stripe's "No such …"."""
    return ApiError(
        f"No such {kind}: '{object_id}'", status=status, code="resource_missing", param=param
    )
