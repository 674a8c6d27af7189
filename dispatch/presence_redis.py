"""How presence looks in Redis: the keys of one epoch, the script's calls, and what they answer.

One job: translate between values and Redis. An *epoch* is one life of the data: it ends when Redis
is emptied, restarted (even with an older copy of its data) or replaced. Every key but the epoch's
own carries the epoch in its name, so nothing of an earlier life is ever seen. A *lease* is the name
of a node's incarnation, `{node_id}.{n}`. Imports the ledger and `redis_link`; does no I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from dispatch.presence_ledger import Change, Write
from dispatch.redis_link import Command

KEEP_SECONDS: Final = 3600  # what no node renews is forgotten: the keys of earlier epochs

_SCRIPT: Final = files("dispatch").joinpath("lua", "presence.lua").read_text("utf-8")
_EPOCH_BEGINS: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.msgpack.Encoder().encode


class Told(NamedTuple):
    """A mechanic came (`online`) or went; `seen` is when somebody last had her connected."""

    user_id: UUID
    online: bool
    seen: datetime | None


class ScriptAnswer(NamedTuple):
    """What the script says: its status, Redis's time, and whom to tell about.

    `shared` are mechanics who were written while another node had them too.
    """

    status: str
    at: datetime
    told: list[Told]
    shared: list[UUID]


class View(Struct, frozen=True):
    """The leases of an epoch at one moment.

    `live` names those that have not run out, `published` the nodes that have one and have written
    everybody who is connected to them, `expired` the others.
    """

    at: datetime
    live: frozenset[str]
    published: frozenset[UUID]
    expired: frozenset[str]


class _Lease(Struct, frozen=True, array_like=True):
    deadline_us: int
    renewed_us: int
    seq: int
    published: bool


_decode_lease = msgspec.msgpack.Decoder(_Lease).decode
_decode_entries = msgspec.msgpack.Decoder(dict[str, str]).decode
_decode_answer = msgspec.msgpack.Decoder(
    tuple[str, int, list[tuple[str, bool, int]], list[str]], strict=False
).decode


def node_of(lease: str) -> UUID:
    """Whose incarnation it is."""
    return UUID(lease.partition(".")[0])


def entries_of(packed: bytes | None) -> list[tuple[str, str | None]]:
    """A user's connections as (lease, device); `packed` is the user's value in `users`."""
    if packed is None:
        return []
    entries = _decode_entries(packed).items()
    return [(key.rpartition(".")[0], device or None) for key, device in entries]


def time_of(us: int) -> datetime:
    """Microseconds since 1970, as Redis counts them, as a time."""
    return _EPOCH_BEGINS + timedelta(microseconds=us)


class Life(Struct, frozen=True):
    """One epoch of one cluster's presence: what to send, and what the answers mean."""

    namespace: str
    run_id: str
    epoch: str

    def key(self, name: str) -> str:
        """A key of this epoch."""
        return f"dispatch:{self.namespace}:presence:{self.epoch}:{name}"

    def apply(
        self,
        lease: str,
        seq: int,
        lease_seconds: float,
        changes: Iterable[Change] = (),
        *,
        published: bool,
        now: float,
    ) -> Command:
        """Write the changes and renew the lease. Status: ok, fenced, late or lost."""
        ops = [_op(change, now) for change in changes]
        lease_us = int(lease_seconds * 1_000_000)
        return self._call("apply", lease, seq, lease_us, int(published), _encode(ops))

    def bury(self, lease: str, limit: int, *, forced: bool = False) -> Command:
        """Remove entries of a lease that ran out (forced: any). Status: more, gone, alive, lost."""
        return self._call("bury", lease, limit, "forced" if forced else "")

    def view(self) -> tuple[Command, ...]:
        """What `read_view` reads. The epoch comes last: it vouches for what was read before."""
        return (
            ("HGETALL", self.key("nodes")),
            ("TIME",),
            ("GET", epoch_key(self.namespace, self.run_id)),
        )

    def read_view(self, answers: Sequence[Any]) -> View | None:
        """The leases; None when this life is over."""
        nodes, (seconds, micros), epoch = answers
        if epoch != self.epoch.encode():
            return None
        now_us = int(seconds) * 1_000_000 + int(micros)
        leases = {name.decode(): _decode_lease(packed) for name, packed in _pairs(nodes)}
        live = {name: lease for name, lease in leases.items() if lease.deadline_us >= now_us}
        return View(
            at=time_of(now_us),
            live=frozenset(live),
            published=frozenset(node_of(name) for name, lease in live.items() if lease.published),
            expired=frozenset(leases.keys() - live.keys()),
        )

    def keep(self, lease: str) -> tuple[Command, ...]:
        """Let nothing of this epoch be forgotten for an hour."""
        return tuple(("EXPIRE", key, KEEP_SECONDS) for key in self._keys(lease))

    def _call(self, verb: str, lease: str, *arguments: str | bytes | int) -> Command:
        keys = self._keys(lease)
        return ("EVAL", _SCRIPT, len(keys), *keys, verb, self.epoch, lease, *arguments)

    def _keys(self, lease: str) -> list[str]:
        names = ("nodes", "users", "mechanics", "workshops", "seen", f"members:{lease}")
        return [epoch_key(self.namespace, self.run_id), *(self.key(name) for name in names)]


def epoch_key(namespace: str, run_id: str) -> str:
    """Where the epoch of this run of the Redis server is named.

    A server that comes back with a copy of its data has another run id: it knows an old truth.
    """
    return f"dispatch:{namespace}:presence:epoch:{run_id}"


def run_id_of(info: bytes | Mapping[bytes, bytes]) -> str:
    """The run id in what INFO said."""
    assert isinstance(info, bytes)
    lines = dict(line.partition(":")[::2] for line in info.decode().splitlines())
    return lines.get("run_id", "")


def read_script(answer: bytes) -> ScriptAnswer:
    """What `apply` or `bury` answered."""
    status, now_us, told, shared = _decode_answer(answer)
    return ScriptAnswer(
        status,
        time_of(now_us),
        [Told(UUID(user), on, time_of(us)) for user, on, us in told],
        [UUID(user) for user in shared],
    )


def _op(change: Change, now: float) -> tuple[object, ...]:
    c = change.connection
    if isinstance(change, Write):
        workshop = c.workshop_id.hex if c.workshop_id else ""
        flags = (change.silent, change.again)
        return (
            "add",
            c.user_id.hex,
            c.connection_id.hex,
            c.mechanic,
            workshop,
            c.device or "",
            *flags,
        )
    age_us = max(0, int((now - change.left_at) * 1_000_000))
    return ("remove", c.user_id.hex, c.connection_id.hex, c.mechanic, age_us)


def _pairs(answer: Any) -> Iterable[tuple[bytes, bytes]]:
    """A hash as RESP3 (a map) or RESP2 (a flat list) gives it."""
    if isinstance(answer, Mapping):
        return answer.items()
    return zip(answer[::2], answer[1::2], strict=True)
