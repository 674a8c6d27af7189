"""The configuration: read from the environment once, checked as a whole, never changed.

Its one job: turn variables into a frozen `Config`. Each setting is one line of the class: its
variable, its default and what it may be. May import `errors` and the core's types only. Fails with
one `ConfigError` that names every wrong or missing value together; no secret is ever part of a
message, of `repr(config)` or of `describe(config)`.
"""

import base64
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from dispatch.core.types import Policy
from dispatch.errors import ConfigError

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS
WEEK_SECONDS = 7 * DAY_SECONDS
JWT_SECRET_BYTES = 32
VAPID_KEY_BYTES = 32

# A parser turns the variable's text into the value, or raises ValueError with what is expected
# and without the text, which may be a secret. A shower turns the value into what may be seen.
Parse = Callable[[str], Any]
Show = Callable[[Any], str]


def _setting(variable: str, default: object, parse: Parse, show: Show = str) -> Any:
    return field(default=default, metadata={"variable": variable, "parse": parse, "show": show})


def _text(variable: str, default: str = "") -> Any:
    return _setting(variable, default, str)


def _choice(variable: str, default: str, choices: Sequence[str]) -> Any:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return text

    return _setting(variable, default, parse)


def _secret(variable: str, at_least_bytes: int = 1) -> Any:
    def parse(text: str) -> str:
        if len(text.encode()) < at_least_bytes:
            raise ValueError(f"must have at least {at_least_bytes} bytes")
        return text

    return _setting(variable, "", parse, _masked)


def _masked(value: object) -> str:
    return "***" if value else ""


def _number(variable: str, default: float, low: float, high: float, whole: bool = False) -> Any:
    def parse(text: str) -> float:
        expected = f"must be a {'whole ' if whole else ''}number from {low:g} to {high:.0f}"
        try:
            number = int(text) if whole else float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= number <= high:  # also false for NaN
            raise ValueError(expected)
        return number

    return _setting(variable, default, parse, lambda number: f"{number:.15g}")


def _seconds(variable: str, default: float, high: float) -> Any:
    return _number(variable, float(default), 0.01, high)


def _url(variable: str, schemes: Sequence[str], default: str = "", host: bool = True) -> Any:
    def parse(text: str) -> str:
        expected = f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}"
        try:
            parts = urlsplit(text)
            _ = parts.port  # urlsplit checks the port when it is asked for
        except ValueError:
            raise ValueError(f"{expected}, and this one cannot be read") from None
        named = text.startswith(f"{parts.scheme}://") and (parts.hostname or not host)
        if parts.scheme not in schemes or not named:
            raise ValueError(expected)
        return text.rstrip("/")

    return _setting(variable, default, parse, without_password)


def _guarded_url(variable: str) -> Any:
    """A URL whose answers decide who somebody is: nobody on the way may write them."""
    parse_url = _url(variable, ("https", "http")).metadata["parse"]

    def parse(text: str) -> str:
        url: str = parse_url(text)
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError("must begin with https:// unless it is on this machine")
        return url

    return _setting(variable, "", parse, without_password)


def without_password(url: str) -> str:
    """The URL as people may see it: a password in it is shown as `***`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    if "password" in parts.query:
        return f"{parts.scheme}://***"
    user, at, address = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    return parts._replace(netloc=f"{name}{':***' if colon else ''}{at}{address}").geturl()


def _list(variable: str, parse_one: Parse = str, show: Show = ", ".join) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise ValueError("must be a comma-separated list")
        return tuple(parse_one(part) for part in parts)

    return _setting(variable, (), parse, show)


def _origin(text: str) -> str:
    parts = urlsplit(text)
    is_bare = text == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc
    if parts.scheme not in ("http", "https") or not is_bare:
        raise ValueError("must be origins, scheme://host[:port] without a path")
    return text.lower()


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError("must be IP addresses or networks") from None


def _vapid_key(text: str) -> str:
    """A private key of P-256 as `dispatch vapid-key` and browsers' tools print it."""
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(raw) != VAPID_KEY_BYTES:
            raise ValueError
        ec.derive_private_key(int.from_bytes(raw), ec.SECP256R1())
    except ValueError:
        raise ValueError("must be a private key as `dispatch vapid-key` prints it") from None
    return text


def _vapid_subject(text: str) -> str:
    if re.fullmatch(r"mailto:[!-~]+@[!-~]+|https://[!-~]+", text) is None:
        raise ValueError("must begin with mailto: or https:// and be an address to write to")
    return text


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """Every setting. `…_seconds` are seconds, may be fractional, and are greater than 0.

    In embedded mode (`embedded`) the URLs and the generated secrets are empty until the servers of
    `data_dir` have been started or found: see `with_embedded`. `sources` says per field where its
    value came from: `environment`, `option`, `default` or `embedded`.
    """

    database_url: str = _url("DATABASE_URL", ("postgresql", "postgres"), host=False)
    redis_url: str = _url("REDIS_URL", ("redis", "rediss", "unix"), host=False)
    host: str = _text("DISPATCH_HOST", "127.0.0.1")
    port: int = _number("DISPATCH_PORT", 8000, 0, 65535, whole=True)
    data_dir: Path = _setting("DISPATCH_DATA_DIR", Path(".data"), Path)  # noqa: RUF009 - a field
    jwt_secret: str = _secret("DISPATCH_JWT_SECRET", JWT_SECRET_BYTES)
    jwks_url: str = _guarded_url("DISPATCH_JWKS_URL")
    jwt_issuer: str = _text("DISPATCH_JWT_ISSUER")
    jwt_audience: str = _text("DISPATCH_JWT_AUDIENCE")
    allowed_origins: tuple[str, ...] = _list("DISPATCH_ALLOWED_ORIGINS", _origin)
    stripe_secret_key: str = _secret("STRIPE_SECRET_KEY")
    stripe_webhook_secrets: tuple[str, ...] = _list("STRIPE_WEBHOOK_SECRET", show=_masked)
    stripe_api_base: str = _url("STRIPE_API_BASE", ("https", "http"), "https://api.stripe.com")
    public_url: str = _url("DISPATCH_PUBLIC_URL", ("https", "http"))
    priority_window_seconds: float = _seconds("DISPATCH_PRIORITY_WINDOW_SECONDS", 600, DAY_SECONDS)
    wait_window_seconds: float = _seconds("DISPATCH_WAIT_WINDOW_SECONDS", 1800, WEEK_SECONDS)
    head_start_seconds: float = _seconds("DISPATCH_HEAD_START_SECONDS", 3, HOUR_SECONDS)
    offer_retry_seconds: float = _seconds("DISPATCH_OFFER_RETRY_SECONDS", 5, HOUR_SECONDS)
    offer_attempts: int = _number("DISPATCH_OFFER_ATTEMPTS", 3, 1, 100, whole=True)
    request_ttl_seconds: float = _seconds("DISPATCH_REQUEST_TTL_SECONDS", 7200, WEEK_SECONDS)
    presence_grace_seconds: float = _seconds("DISPATCH_PRESENCE_GRACE_SECONDS", 5, HOUR_SECONDS)
    node_lease_seconds: float = _seconds("DISPATCH_NODE_LEASE_SECONDS", 5, HOUR_SECONDS)
    sweep_seconds: float = _seconds("DISPATCH_SWEEP_SECONDS", 1, HOUR_SECONDS)
    join_seconds: float = _seconds("DISPATCH_JOIN_SECONDS", 300, DAY_SECONDS)
    plan_minute_seconds: float = _seconds("DISPATCH_PLAN_MINUTE_SECONDS", 60, HOUR_SECONDS)
    warning_seconds: float = _seconds("DISPATCH_WARNING_SECONDS", 60, DAY_SECONDS)
    rate_messages: float = _number("DISPATCH_RATE_MESSAGES", 20.0, 0, 1_000_000)
    rate_connects: float = _number("DISPATCH_RATE_CONNECTS", 20.0, 0, 1_000_000)
    rate_logins: float = _number("DISPATCH_RATE_LOGINS", 5.0, 0, 1_000_000)
    trusted_proxies: tuple[str, ...] = _list("DISPATCH_TRUSTED_PROXIES", _network)
    metrics_token: str = _secret("DISPATCH_METRICS_TOKEN")
    mechanic_capacity: int = _number("DISPATCH_MECHANIC_CAPACITY", 1, 1, 100, whole=True)
    drain_seconds: float = _seconds("DISPATCH_DRAIN_SECONDS", 30, HOUR_SECONDS)
    livekit_url: str = _url("LIVEKIT_URL", ("wss", "ws", "https", "http"))
    livekit_api_key: str = _text("LIVEKIT_API_KEY")
    livekit_api_secret: str = _secret("LIVEKIT_API_SECRET")
    payout_schedule: Literal["off", "weekly", "monthly"] = _choice(
        "DISPATCH_PAYOUT_SCHEDULE", "off", ("off", "weekly", "monthly")
    )
    payout_minimum_cents: int = _number(
        "DISPATCH_PAYOUT_MINIMUM_CENTS", 1000, 1, 100_000_000, whole=True
    )
    vapid_private_key: str = _setting("VAPID_PRIVATE_KEY", "", _vapid_key, _masked)
    vapid_subject: str = _setting("VAPID_SUBJECT", "", _vapid_subject)
    push_trusted_origins: tuple[str, ...] = _list("DISPATCH_PUSH_TRUSTED_ORIGINS", _origin)
    push_urgent_below: int = _number("DISPATCH_PUSH_URGENT_BELOW", 0, 0, 1_000_000, whole=True)
    smtp_url: str = _url("SMTP_URL", ("smtp", "smtps"))

    embedded: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{row.name}={row.value}' for row in describe(self))})"

    def with_embedded(self, values: Mapping[str, Any]) -> Self:
        """The same with what the embedded servers gave; what the environment set stays."""
        given = {name: new for name, new in values.items() if self.sources.get(name) == "embedded"}
        return dataclasses.replace(self, **given)

    def listening_on(self, port: int) -> Self:
        """The same for the port that was bound, with the URL and origins that follow from it."""
        config = dataclasses.replace(self, port=port)
        local = f"http://{bracketed(reachable(self.host))}:{port}"
        public_url = self.public_url if self._is_set("public_url") else local
        allowed = self.allowed_origins
        if not self._is_set("allowed_origins"):
            own = "{0.scheme}://{0.netloc}".format(urlsplit(public_url)).lower()
            loopback = (f"http://localhost:{port}", f"http://127.0.0.1:{port}")
            allowed = tuple(dict.fromkeys((own, *(loopback if _is_local(self.host) else ()))))
        return dataclasses.replace(config, public_url=public_url, allowed_origins=allowed)

    @property
    def web_push(self) -> bool:
        """Whether mechanics can be reached by web push (N3)."""
        return bool(self.vapid_private_key)

    def policy(self) -> Policy:
        """The part that decisions use."""
        return Policy(**{name: getattr(self, name) for name in Policy.__struct_fields__})

    def _is_set(self, name: str) -> bool:
        return self.sources.get(name) in ("environment", "option")


def bracketed(host: str) -> str:
    """The host as a URL writes it: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def reachable(host: str) -> str:
    """The host by which this machine reaches a server bound to it: a wildcard is no address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _is_local(host: str) -> bool:
    return reachable(host) in ("127.0.0.1", "::1", "localhost")


def is_loopback(host: str) -> bool:
    """Whether what is said to this host never leaves the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Row:
    """A line of `check-config`: the variable, its value as it may be seen, where it came from."""

    name: str
    value: str
    source: str


def describe(config: Config) -> list[Row]:
    """Every setting in the order of the documentation; secrets that are set are `***`."""
    rows = []
    for setting in dataclasses.fields(Config):
        if "variable" in setting.metadata:
            value = setting.metadata["show"](getattr(config, setting.name))
            source = config.sources.get(setting.name, "default")
            rows.append(Row(setting.metadata["variable"], value, source))
    return rows


def load(
    environ: Mapping[str, str],
    *,
    embedded_dir: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> Config:
    """Read and check the whole configuration; an empty variable counts as one that is not set.

    `embedded_dir`, `host` and `port` are the options of the command line and win over variables.
    Raises ConfigError naming everything that is wrong or missing.
    """
    environ = {name: text.strip() for name, text in environ.items() if text.strip()}
    embedded = embedded_dir is not None or not {"DATABASE_URL", "REDIS_URL"} & environ.keys()
    options = {"DISPATCH_DATA_DIR": embedded_dir, "DISPATCH_HOST": host, "DISPATCH_PORT": port}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for setting in dataclasses.fields(Config):
        variable = setting.metadata.get("variable", "")
        option = options.get(variable)
        text = environ.get(variable) if option is None else str(option)
        if text is None or (embedded and setting.name in _SERVERS):
            continue
        try:
            values[setting.name] = setting.metadata["parse"](text)
            sources[setting.name] = "environment" if option is None else "option"
        except ValueError as error:
            problems.append(f"{variable} {error}")
    problems += _missing(environ, embedded)
    problems += _unsafe_with_money(values, embedded)
    if problems:
        raise ConfigError(problems)
    if embedded:
        to_come = _SERVERS | {name: no for name, no in _GENERATED.items() if name not in sources}
        if "stripe_secret_key" in sources:  # Stripe's own key: the stand-in's address is not for it
            to_come.pop("stripe_api_base", None)
        values |= to_come
        sources |= dict.fromkeys(to_come, "embedded")
    config = Config(**values, embedded=embedded, sources=sources)
    return config.listening_on(config.port)


# What embedded servers give: always, and where nothing else is set. Empty until they run.
_SERVERS: dict[str, Any] = {"database_url": "", "redis_url": ""}
_GENERATED: dict[str, Any] = {
    "jwt_secret": "",
    "stripe_secret_key": "",
    "stripe_webhook_secrets": (),
    "stripe_api_base": "",
    "smtp_url": "",
}

# Each of these is one feature: with only some of its settings it would fail when first used.
_TOGETHER = (
    ("DISPATCH_JWKS_URL", "DISPATCH_JWT_ISSUER", "DISPATCH_JWT_AUDIENCE"),
    ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"),
    ("VAPID_PRIVATE_KEY", "VAPID_SUBJECT"),
)


_STRIPE: Final = "https://api.stripe.com"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def _unsafe_with_money(values: Mapping[str, Any], embedded: bool) -> list[str]:
    """What must not be with a key of Stripe: a live one goes to Stripe itself and nowhere else."""
    key = values.get("stripe_secret_key", "")
    base = values.get("stripe_api_base", _STRIPE)
    problems = []
    if key and re.match(r"(sk|rk)_(test|live)_.", key) is None:
        problems.append(
            "STRIPE_SECRET_KEY must begin with sk_test_, sk_live_, rk_test_ or rk_live_"
        )
    if is_live_key(key):
        if base != _STRIPE:
            problems.append(f"STRIPE_API_BASE must be {_STRIPE} with a live key")
        if not values.get("public_url", "").startswith("https://"):
            problems.append("DISPATCH_PUBLIC_URL must be https:// with a live key")
        if embedded:
            problems.append("STRIPE_SECRET_KEY is live: set DATABASE_URL and REDIS_URL too")
    elif base.startswith("http://") and urlsplit(base).hostname not in _LOOPBACK:
        problems.append("STRIPE_API_BASE must be https:// unless it is on this machine")
    return problems


def is_live_key(key: str) -> bool:
    """Whether this key of Stripe's moves real money."""
    return key.startswith(("sk_live_", "rk_live_"))


def _missing(environ: Mapping[str, str], embedded: bool) -> list[str]:
    problems = []
    if not embedded:
        problems += [
            f"{name} is missing: set both DATABASE_URL and REDIS_URL, or neither"
            for name in ("DATABASE_URL", "REDIS_URL")
            if name not in environ
        ]
        required = ("DISPATCH_JWT_SECRET", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET")
        problems += [f"{name} is missing" for name in required if name not in environ]
    elif "STRIPE_SECRET_KEY" in environ and "STRIPE_WEBHOOK_SECRET" not in environ:
        problems.append("STRIPE_WEBHOOK_SECRET is missing: STRIPE_SECRET_KEY is set")
    for group in _TOGETHER:
        absent = [name for name in group if name not in environ]
        if 0 < len(absent) < len(group):
            present = next(name for name in group if name in environ)
            problems += [f"{name} is missing: {present} is set" for name in absent]
    return problems
