"""Frames that nobody thought of, over real sockets, judged by the server's own description.

One job: make sequences of frames of what `/asyncapi.json` says (right ones, wrong ones, in any
order, as somebody in any role), send them, and collect what breaks a promise: a frame with an `id`
that is never answered, or by a kind that it is not answered with; a frame of the server's that is
not described; a close that is nobody's fault, or has no code of ours.
"""

import asyncio
import contextlib
import itertools
import json
import re
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import jsonschema_rs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]
Schema = dict[str, Any]

ROLES = ("customer", "mechanic", "workshop", "admin")
SCRIPTS = 20  # of one seed before the next
ANSWER_SECONDS = 10.0
MAX_FINDINGS = 50
SHOWN_CHARS = 4000
KEPT_IDS = 10  # of a kind: the latest
STRIKES = 3  # bad frames that end a connection
NOT_AUTHENTICATED, BAD_FRAMES = 4401, 4400
_ID = re.compile(r'"(\w+_id)": "([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"')


@dataclass
class Found:
    """What was sent, what came, and what was wrong."""

    sent: Counter[str] = field(default_factory=Counter)
    got: Counter[str] = field(default_factory=Counter)
    closed: Counter[int] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


# --- what the server says of itself ---------------------------------------------------------------


class Description:
    """The frames of `/asyncapi.json`: how they look, who sends them, what answers them."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.schemas: dict[str, Schema] = document["components"]["schemas"]
        operations = document["operations"]
        self.senders: dict[str, list[str]] = {
            name: told["x-senders"]
            for name, told in operations.items()
            if told["action"] == "receive"
        }
        self.answers = {
            name: [_last(each) for each in operations[name].get("reply", {}).get("messages", [])]
            for name in self.senders
        }
        payloads = {
            name: message["payload"] for name, message in document["components"]["messages"].items()
        }
        self.shapes = {name: self.schemas[_last(payloads[name])] for name in self.senders}
        self.error_codes = frozenset(document["x-error-codes"])
        self.close_codes = frozenset(map(int, document["x-close-codes"]))
        self._validators = {
            name: jsonschema_rs.validator_for({**payload, "components": document["components"]})
            for name, payload in payloads.items()
            if name not in self.senders
        }

    def faults(self, frame: Frame) -> list[str]:
        """What contradicts the description in a frame of the server's."""
        validator = self._validators.get(frame.get("type", ""))
        if validator is None:
            return [f"a frame of no described type: {frame}"]
        found = [f"{frame['type']}: {error.message}" for error in validator.iter_errors(frame)]
        if frame["type"] == "error" and frame["code"] not in self.error_codes:
            found.append(f"an error with the code {frame['code']}")
        return found


def _last(reference: Mapping[str, str]) -> str:
    return reference["$ref"].rsplit("/", 1)[1]


# --- what is sent ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The place of an id (or of a `token`) that is known under this name when it is sent."""

    name: str
    number: int = 0


@dataclass(frozen=True)
class Message:
    """One message: a frame of this type, whole or not, or something else (then no type)."""

    kind: str | None
    content: Any
    is_whole: bool

    @property
    def is_surely_whole(self) -> bool:
        """A schema cannot say that `offer.seen` has one of two fields, and not both."""
        return self.is_whole and self.kind != "offer.seen"

    @property
    def can_be_answered(self) -> bool:
        """Whether its id can be read: it is an object with a type."""
        return isinstance(self.content, dict) and isinstance(self.content.get("type"), str)


def _values(description: Description, name: str, schema: Schema) -> st.SearchStrategy[Any]:
    """Everything that fits a field's schema; ids are mostly ones that there are."""
    if "$ref" in schema:
        return _values(description, name, description.schemas[_last(schema)])
    if "anyOf" in schema:
        return st.one_of([_values(description, name, kind) for kind in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "string" if schema.get("format") == "uuid":
            known = st.builds(Known, st.just(name), st.integers(0, KEPT_IDS))
            return st.integers(0, 4).flatmap(lambda luck: known if luck else st.uuids().map(str))
        case "string":
            return st.text(
                st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                min_size=schema.get("minLength", 0),
                max_size=min(schema.get("maxLength", 100), 100),
            )
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(
                _values(description, name.removesuffix("s"), schema["items"]),
                min_size=schema.get("minItems", 0),
                max_size=min(schema.get("maxItems", 5), 5),
            )
        case "object":
            return _objects(description, schema)
    raise ValueError(f"no values are known for {schema}")


def _objects(description: Description, shape: Schema) -> st.SearchStrategy[Frame]:
    values = {
        name: st.sampled_from([Known("token"), "not.a.token"])
        if name == "token"
        else _values(description, name, schema)
        for name, schema in shape["properties"].items()
        if name != "id"
    }
    required = {name: values[name] for name in shape["required"]}
    return st.fixed_dictionaries(
        required, optional={name: each for name, each in values.items() if name not in required}
    )


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _whole(description: Description) -> st.SearchStrategy[Message]:
    def of(name: str) -> st.SearchStrategy[Message]:
        frames = _objects(description, description.shapes[name])
        return frames.map(lambda frame: Message(name, frame, is_whole=True))

    return st.sampled_from(sorted(description.senders)).flatmap(of)


@st.composite
def _broken(draw: st.DrawFn, description: Description) -> Message:
    """A frame with something missing, of another kind, or too much in it."""
    message = draw(_whole(description))
    frame = dict(message.content)
    name = draw(st.sampled_from(sorted(frame)))
    match draw(st.sampled_from(["missing", "other", "more", "large"])):
        case "missing":
            del frame[name]
        case "other":
            frame[name] = draw(_JUNK)
        case "more":
            frame[draw(st.text(min_size=1, max_size=10))] = draw(_JUNK)
        case _:
            frame[name] = "x" * draw(st.sampled_from([65, 501, 9000, 60_000]))
    return Message(message.kind, frame, is_whole=False)


_RAW = st.one_of(
    _JUNK.map(json.dumps),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(
        ["", "{", "[" * 5000, '{"type":"ping"}{"type":"ping"}', '{"type":"pi\\u0000"}']
    ),
).map(lambda content: Message(None, content, is_whole=False))


@dataclass(frozen=True)
class Script:
    """What one connection says: before its hello (then its token is in that), and afterwards."""

    role: str
    before: list[Message] | None
    messages: list[Message]


@st.composite
def _messages(draw: st.DrawFn, description: Description) -> Message:
    """Most are whole: a connection does not survive three that are not."""
    luck = draw(st.integers(0, 15))
    if luck > 3:
        return draw(_whole(description))
    return draw(_broken(description) if luck else _RAW)


def _scripts(description: Description) -> st.SearchStrategy[Script]:
    messages = _messages(description)
    return st.builds(
        Script,
        role=st.sampled_from(ROLES),
        before=st.none() | st.lists(messages, max_size=2),
        messages=st.lists(messages, max_size=15),
    )


# --- saying it ------------------------------------------------------------------------------------

TokenOf = Callable[[str], str]


class _Play:
    """One run: the sockets of those who only listen, the ids that they hear of, what is found."""

    def __init__(self, ws_url: str, description: Description, token_of: TokenOf) -> None:
        self.ws_url = ws_url
        self.description = description
        self.token_of = token_of
        self.found = Found()
        self.ids: defaultdict[str, deque[str]] = defaultdict(partial(deque, maxlen=KEPT_IDS))

    async def say(self, script: Script) -> None:
        """One connection, all that it says, and what comes of it."""
        headers = {}
        messages = list(script.messages)
        token = self.token_of(script.role)
        if script.before is None:
            headers["Authorization"] = f"Bearer {token}"
        else:
            hello = Message("hello", {"type": "hello", "token": token}, is_whole=True)
            messages = [*script.before, hello, *messages]
        async with connect(
            self.ws_url, additional_headers=headers, compression=None, proxy=None
        ) as link:
            talk = _Talk(self, script, link)
            wrong = await talk.run(messages)
        if wrong:
            told = json.dumps(talk.said, indent=1)[:SHOWN_CHARS]
            self.found.findings.append(f"{script.role}: {'; '.join(wrong)}\n{told}")

    def hear(self, frame: Frame) -> list[str]:
        """Counts a frame of the server, remembers its ids; what is wrong with it."""
        self.found.got[str(frame.get("type"))] += 1
        for name, id_ in _ID.findall(json.dumps(frame)):
            self.learn(name, id_)
        return self.description.faults(frame)

    def learn(self, name: str, id_: str) -> None:
        """There is something with this id, of the kind that the name says."""
        if id_ not in self.ids[name]:
            self.ids[name].append(id_)

    async def listen(self, link: ClientConnection) -> None:
        """Somebody who says nothing, until the connection is closed."""
        try:
            async for message in link:
                self.found.findings += self.hear(json.loads(message))
        except ConnectionClosed as closed:
            self.found.findings.append(f"a listener was closed: {closed}")


class _Talk:
    """One connection: what was said with which id, and what came back."""

    def __init__(self, play: _Play, script: Script, link: ClientConnection) -> None:
        self.play = play
        self.script = script
        self.link = link
        self.said: list[Any] = []
        self.frames: list[Frame] = []

    async def run(self, messages: list[Message]) -> list[str]:
        """All of it, then a ping; what was wrong."""
        waiting: dict[str, Message] = {}
        with contextlib.suppress(ConnectionClosed):  # what was said before it still came
            for message in [*messages, Message("ping", {"type": "ping"}, is_whole=True)]:
                await self.link.send(self._spelled(message, waiting))
        fence = list(waiting)[-1]
        wrong = []
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async for text in self.link:
                    self.frames.append(json.loads(text))
                    wrong += self.play.hear(self.frames[-1])
                    if self.frames[-1].get("re") == fence:
                        return wrong + self._faults_of_answers(waiting)
        except TimeoutError:
            return [*wrong, "the last ping was not answered"]
        except ConnectionClosed:
            pass
        return wrong + self._faults_of_close(messages)

    def _spelled(self, message: Message, waiting: dict[str, Message]) -> str | bytes:
        """As it is sent, with an id of its own where it can have one."""
        self.play.found.sent[message.kind or "something else"] += 1
        content = self._filled(message.content)
        if isinstance(content, dict) and message.kind is not None:
            content["id"] = str(uuid.uuid4())
            waiting[content["id"]] = message
        self.said.append(content if not isinstance(content, bytes) else repr(content))
        return content if isinstance(content, str | bytes) else json.dumps(content)

    def _filled(self, part: Any) -> Any:
        match part:
            case Known("token"):
                return self.play.token_of(self.script.role)
            case Known(name, number):
                ids = self.play.ids[name]
                return ids[number % len(ids)] if ids else str(uuid.uuid4())
            case dict():
                return {name: self._filled(each) for name, each in part.items()}
            case list():
                return [self._filled(each) for each in part]
            case _:
                return part

    def _faults_of_close(self, messages: list[Message]) -> list[str]:
        """A connection ends for what was wrong in it, with the code that says so."""
        code = self.link.close_code
        self.play.found.closed[code or 0] += 1
        before = self.script.before or []
        suspects = [*before, *(each for each in messages if not each.is_surely_whole)]
        if code == BAD_FRAMES and len(suspects) >= STRIKES:
            return []
        tokens = [each for each in messages if each.kind == "token.refresh"]
        if code == NOT_AUTHENTICATED and (tokens or any(e.kind == "hello" for e in before)):
            return []
        return [f"closed with {code} {self.link.close_reason}"]

    def _faults_of_answers(self, waiting: dict[str, Message]) -> list[str]:
        """Each frame with an id is answered once, by a kind that may answer it."""
        described = self.play.description
        answers: dict[str, list[Frame]] = {}
        for frame in self.frames:
            if "re" in frame:
                answers.setdefault(frame["re"], []).append(frame)
        wrong = [f"an answer to nothing: {re}" for re in answers.keys() - waiting.keys()]
        for id_, message in waiting.items():
            kinds = [frame["type"] for frame in answers.get(id_, [])]
            if message.is_whole and message.kind is not None:
                may = described.answers[message.kind]
                if not kinds and may:
                    wrong.append(f"no answer to {message.kind}")
                if self.script.role not in described.senders[message.kind]:
                    may = ["error"]
                wrong += [
                    f"{message.kind} was answered with {kind}"
                    for kind in kinds
                    if kind not in (*may, "error")
                ]
            elif not kinds and message.can_be_answered and message.content["type"] != "offer.seen":
                wrong.append(f"no answer to a broken {message.kind}")
            if len(kinds) > 1:
                wrong.append(f"{message.kind} was answered {len(kinds)} times: {kinds}")
        return wrong


def fuzz(url: str, token_of: TokenOf, *, seconds: float, first_seed: int = 0) -> Found:
    """Talks for so many seconds, one connection after the other, with one listener in each role.

    `token_of` gives the token of somebody in a role; whoever is the customer books now and then, so
    that there is something to talk about. The server is to count no messages.
    """
    with asyncio.Runner() as runner:
        return runner.run(_fuzz(url, token_of, seconds, first_seed))


async def _fuzz(url: str, token_of: TokenOf, seconds: float, first_seed: int) -> Found:
    ws_url = f"{url.replace('http', 'ws', 1)}/ws"
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/asyncapi.json") as answer:
            description = Description(await answer.json(content_type=None))
        play = _Play(ws_url, description, token_of)
        links = [
            await connect(ws_url, additional_headers={"Authorization": f"Bearer {token_of(role)}"})
            for role in ROLES
        ]
        listeners = [asyncio.create_task(play.listen(link)) for link in links]
        until = time.monotonic() + seconds
        for number in itertools.count(first_seed):
            if time.monotonic() >= until or len(play.found.findings) >= MAX_FINDINGS:
                break
            await _book(http, play)
            for script in _drawn(description, number):
                await play.say(script)
        for link in links:
            await link.close()
        await asyncio.gather(*listeners)
    return play.found


async def _book(http: aiohttp.ClientSession, play: _Play) -> None:
    """A new booking of the customer's, whose last one ends for it."""
    headers = {"Authorization": f"Bearer {play.token_of('customer')}"}
    for _ in range(2):
        async with http.post("/api/intake/start", json={"plan": "free"}, headers=headers) as answer:
            told = await answer.json()
        if "activeSessionId" not in told:
            break
        await http.post(f"/api/sessions/{told['activeSessionId']}/end", headers=headers)
    for name in ("request_id", "session_id"):
        play.learn(name, told[name])


def _drawn(description: Description, number: int) -> list[Script]:
    """The scripts of one seed."""
    drawn: list[Script] = []

    @seed(number)
    @settings(
        max_examples=SCRIPTS,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_scripts(description))
    def draw(script: Script) -> None:
        drawn.append(script)

    draw()
    return drawn


def lines(found: Found) -> Iterator[str]:
    """The run in a few words, and everything that was wrong."""
    yield f"{found.sent.total()} messages sent: {dict(sorted(found.sent.items()))}"
    yield f"{found.got.total()} frames got: {dict(sorted(found.got.items()))}"
    yield f"closed by code: {dict(sorted(found.closed.items()))}"
    yield from found.findings
