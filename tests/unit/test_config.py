"""What operators set is read once, checked as a whole, and secrets stay secret."""

import dataclasses
from pathlib import Path

import pytest

from dispatch.config import describe, load, without_password
from dispatch.errors import ConfigError

PRODUCTION = {
    "DATABASE_URL": "postgresql://dispatch:hunter2@db.internal:5432/dispatch",
    "REDIS_URL": "redis://:hunter3@redis.internal:6379/0",
    "DISPATCH_JWT_SECRET": "hunter4-" * 4,
    "STRIPE_SECRET_KEY": "sk_test_hunter5",
    "STRIPE_WEBHOOK_SECRET": "whsec_hunter6, whsec_hunter7",
}
VAPID_PRIVATE_KEY = "hunter10" + "A" * 35


def test_without_any_variable_everything_has_its_documented_default() -> None:
    config = load({})

    assert config.embedded
    assert config.data_dir == Path(".data")
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config.priority_window_seconds == 600
    assert config.wait_window_seconds == 1800
    assert config.head_start_seconds == 3
    assert (config.offer_retry_seconds, config.offer_attempts) == (5, 3)
    assert config.request_ttl_seconds == 7200
    assert (config.presence_grace_seconds, config.node_lease_seconds) == (5, 5)
    assert (config.sweep_seconds, config.join_seconds) == (1, 300)
    assert (config.plan_minute_seconds, config.warning_seconds) == (60, 60)
    assert (config.rate_messages, config.rate_connects, config.rate_logins) == (20, 20, 5)
    assert (config.mechanic_capacity, config.drain_seconds) == (1, 30)
    assert (config.payout_schedule, config.payout_minimum_cents) == ("off", 1000)
    assert (config.web_push, config.push_trusted_origins, config.push_urgent_below) == (
        False,
        (),
        0,
    )


def test_the_environment_is_read_into_values_of_the_right_kind() -> None:
    config = load(
        PRODUCTION
        | {
            "DISPATCH_PORT": "9000",
            "DISPATCH_HEAD_START_SECONDS": "0.25",
            "DISPATCH_RATE_MESSAGES": "0",
            "DISPATCH_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.7",
            "DISPATCH_METRICS_TOKEN": "",
            "DISPATCH_PAYOUT_SCHEDULE": "weekly",
        }
    )

    assert not config.embedded
    assert config.database_url == PRODUCTION["DATABASE_URL"]
    assert config.stripe_webhook_secrets == ("whsec_hunter6", "whsec_hunter7")
    assert config.port == 9000
    assert config.head_start_seconds == 0.25
    assert config.rate_messages == 0
    assert config.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32")
    assert config.metrics_token == ""
    assert config.payout_schedule == "weekly"


def test_everything_that_is_wrong_or_missing_is_named_together_and_no_value_is_shown() -> None:
    with pytest.raises(ConfigError) as raised:
        load(
            {
                "DATABASE_URL": "mysql://root:hunter2@db/dispatch",
                "DISPATCH_JWT_SECRET": "hunter2",
                "DISPATCH_PORT": "70000",
                "DISPATCH_SWEEP_SECONDS": "nan",
                "DISPATCH_DRAIN_SECONDS": "-1",
                "DISPATCH_OFFER_ATTEMPTS": "2.5",
                "DISPATCH_PAYOUT_SCHEDULE": "daily",
                "DISPATCH_PAYOUT_MINIMUM_CENTS": "0",
                "DISPATCH_ALLOWED_ORIGINS": "https://fine.example,https://not.example/path",
                "DISPATCH_TRUSTED_PROXIES": "proxy.example",
                "DISPATCH_PUBLIC_URL": "https://hunter2.example:port",
                "DISPATCH_JWKS_URL": "https://id.example/jwks",
                "LIVEKIT_API_SECRET": "hunter2",
                "STRIPE_WEBHOOK_SECRET": " , ",
            }
        )

    assert list(raised.value.problems) == [
        "DATABASE_URL must be a URL that begins with postgresql:// or postgres://",
        "DISPATCH_PORT must be a whole number from 0 to 65535",
        "DISPATCH_JWT_SECRET must have at least 32 bytes",
        "DISPATCH_ALLOWED_ORIGINS must be origins, scheme://host[:port] without a path",
        "STRIPE_WEBHOOK_SECRET must be a comma-separated list",
        "DISPATCH_PUBLIC_URL must be a URL that begins with https:// or http://, "
        "and this one cannot be read",
        "DISPATCH_OFFER_ATTEMPTS must be a whole number from 1 to 100",
        "DISPATCH_SWEEP_SECONDS must be a number from 0.01 to 3600",
        "DISPATCH_TRUSTED_PROXIES must be IP addresses or networks",
        "DISPATCH_DRAIN_SECONDS must be a number from 0.01 to 3600",
        "DISPATCH_PAYOUT_SCHEDULE must be off or weekly or monthly",
        "DISPATCH_PAYOUT_MINIMUM_CENTS must be a whole number from 1 to 100000000",
        "REDIS_URL is missing: set both DATABASE_URL and REDIS_URL, or neither",
        "STRIPE_SECRET_KEY is missing",
        "DISPATCH_JWT_ISSUER is missing: DISPATCH_JWKS_URL is set",
        "DISPATCH_JWT_AUDIENCE is missing: DISPATCH_JWKS_URL is set",
        "LIVEKIT_URL is missing: LIVEKIT_API_SECRET is set",
        "LIVEKIT_API_KEY is missing: LIVEKIT_API_SECRET is set",
    ]
    assert "hunter2" not in str(raised.value)


def test_with_servers_of_their_own_operators_must_bring_the_secrets_too() -> None:
    servers = {name: PRODUCTION[name] for name in ("DATABASE_URL", "REDIS_URL")}

    with pytest.raises(ConfigError) as raised:
        load(servers)

    assert list(raised.value.problems) == [
        "DISPATCH_JWT_SECRET is missing",
        "STRIPE_SECRET_KEY is missing",
        "STRIPE_WEBHOOK_SECRET is missing",
    ]


LIVE = {
    "DATABASE_URL": "postgresql://db/dispatch",
    "REDIS_URL": "redis://cache",
    "DISPATCH_JWT_SECRET": "x" * 32,
    "DISPATCH_PUBLIC_URL": "https://dispatch.example",
    "STRIPE_SECRET_KEY": "sk_live_hunter5",
    "STRIPE_WEBHOOK_SECRET": "whsec_hunter6",
}


def test_a_live_key_goes_to_stripe_and_customers_come_back_over_https() -> None:
    config = load(LIVE)

    assert (config.stripe_api_base, config.public_url) == (
        "https://api.stripe.com",
        "https://dispatch.example",
    )


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"STRIPE_API_BASE": "http://127.0.0.1:4242"}, "STRIPE_API_BASE must be https://api"),
        ({"STRIPE_API_BASE": "https://evil.example"}, "STRIPE_API_BASE must be https://api"),
        ({"DISPATCH_PUBLIC_URL": "http://dispatch.example"}, "DISPATCH_PUBLIC_URL must be https"),
        ({"DISPATCH_PUBLIC_URL": ""}, "DISPATCH_PUBLIC_URL must be https"),
        ({"DATABASE_URL": "", "REDIS_URL": ""}, "STRIPE_SECRET_KEY is live: set DATABASE_URL"),
        ({"STRIPE_SECRET_KEY": "pk_live_hunter5"}, "STRIPE_SECRET_KEY must begin with"),
        (
            {"STRIPE_SECRET_KEY": "sk_test_x", "STRIPE_API_BASE": "http://evil.example"},
            "STRIPE_API_BASE must be https:// unless",
        ),
    ],
)
def test_a_key_of_stripe_s_is_not_used_where_it_could_leak(
    wrong: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        load(LIVE | wrong)

    assert "hunter" not in str(refused.value)


def test_a_real_stripe_key_in_embedded_mode_needs_its_webhook_secret() -> None:
    with pytest.raises(ConfigError, match="STRIPE_WEBHOOK_SECRET is missing"):
        load({"STRIPE_SECRET_KEY": "sk_test_hunter5"})


def test_secrets_are_shown_nowhere_but_that_they_are_set_is() -> None:
    config = load(
        PRODUCTION
        | {
            "DISPATCH_METRICS_TOKEN": "hunter8",
            "LIVEKIT_URL": "wss://video.example",
            "LIVEKIT_API_KEY": "key",
            "LIVEKIT_API_SECRET": "hunter9",
            "VAPID_PRIVATE_KEY": VAPID_PRIVATE_KEY,
            "VAPID_SUBJECT": "mailto:ops@dispatch.example",
            "SMTP_URL": "smtp://mailer:hunter11@mail.example:587",
        }
    )
    rows = {row.name: row for row in describe(config)}

    assert "hunter" not in repr(config)
    assert "hunter" not in str(rows)
    assert rows["DISPATCH_JWT_SECRET"].value == "***"
    assert rows["STRIPE_WEBHOOK_SECRET"].value == "***"
    assert rows["VAPID_PRIVATE_KEY"].value == "***"
    assert rows["DATABASE_URL"].value == "postgresql://dispatch:***@db.internal:5432/dispatch"
    assert rows["SMTP_URL"].value == "smtp://mailer:***@mail.example:587"
    assert rows["DISPATCH_HOST"].source == "default"
    assert rows["DATABASE_URL"].source == "environment"


VAPID = {"VAPID_PRIVATE_KEY": VAPID_PRIVATE_KEY, "VAPID_SUBJECT": "mailto:ops@dispatch.example"}
PUSH_KEY_EXPECTED = "VAPID_PRIVATE_KEY must be a private key as `dispatch vapid-key` prints it"
PUSH_SUBJECT_EXPECTED = (
    "VAPID_SUBJECT must begin with mailto: or https:// and be an address to write to"
)


def test_web_push_is_on_with_a_key_and_a_subject() -> None:
    origins = {"DISPATCH_PUSH_TRUSTED_ORIGINS": "http://127.0.0.1:9000, https://Push.example"}
    config = load(VAPID | origins | {"DISPATCH_PUSH_URGENT_BELOW": "3"})

    assert config.web_push
    assert config.push_trusted_origins == ("http://127.0.0.1:9000", "https://push.example")
    assert config.push_urgent_below == 3
    assert load(VAPID | {"VAPID_SUBJECT": "https://dispatch.example/contact"}).web_push


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("VAPID_PRIVATE_KEY", "hunter10", PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "hunter10" + "A" * 36, PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "A" * 43, PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "_" * 42 + "8", PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "hunter10 " + "A" * 34, PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "-----BEGIN PRIVATE KEY-----hunter10", PUSH_KEY_EXPECTED),
        ("VAPID_PRIVATE_KEY", "hünter10" + "A" * 35, PUSH_KEY_EXPECTED),
        ("VAPID_SUBJECT", "ops@dispatch.example", PUSH_SUBJECT_EXPECTED),
        ("VAPID_SUBJECT", "http://dispatch.example", PUSH_SUBJECT_EXPECTED),
        ("VAPID_SUBJECT", "mailto:ops", PUSH_SUBJECT_EXPECTED),
        ("VAPID_SUBJECT", "mailto:ops@dispatch.example\nX: 1", PUSH_SUBJECT_EXPECTED),
        (
            "DISPATCH_PUSH_TRUSTED_ORIGINS",
            "push.example",
            "DISPATCH_PUSH_TRUSTED_ORIGINS must be origins, scheme://host[:port] without a path",
        ),
        (
            "DISPATCH_PUSH_URGENT_BELOW",
            "-1",
            "DISPATCH_PUSH_URGENT_BELOW must be a whole number from 0 to 1000000",
        ),
    ],
)
def test_a_wrong_setting_of_web_push_is_named_and_its_value_is_not_shown(
    variable: str, value: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(VAPID | {variable: value})

    assert raised.value.problems == (problem,)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("redis://user@h", "redis://user@h"),
        ("postgresql://u:p@ss@h/d", "postgresql://u:***@h/d"),
        ("postgresql:///d?host=/run&password=secret", "postgresql://***"),
        ("http://[broken", "***"),
    ],
)
def test_a_password_in_a_url_is_masked(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_an_embedded_folder_on_the_command_line_wins_over_urls() -> None:
    config = load(PRODUCTION, embedded_dir="/somewhere", host="0.0.0.0", port=0)

    assert config.embedded
    assert (config.database_url, config.redis_url) == ("", "")
    assert config.data_dir == Path("/somewhere")
    assert config.sources["data_dir"] == "option"


GENERATED = {
    "database_url": "postgresql://e/d",
    "redis_url": "redis://e",
    "jwt_secret": "generated" * 4,
    "stripe_secret_key": "sk_test_e",
    "stripe_webhook_secrets": ("whsec_e",),
    "stripe_api_base": "http://127.0.0.1:4242",
}


def test_what_the_embedded_servers_generate_fills_in_only_what_was_not_set() -> None:
    filled = load({"DISPATCH_JWT_SECRET": "mine" * 8}).with_embedded(GENERATED)

    assert filled.database_url == "postgresql://e/d"
    assert filled.jwt_secret == "mine" * 8
    assert filled.stripe_secret_key == "sk_test_e"
    assert filled.stripe_api_base == "http://127.0.0.1:4242"
    assert filled.sources["stripe_secret_key"] == "embedded"
    assert filled.sources["jwt_secret"] == "environment"


def test_a_key_of_stripes_never_goes_to_the_stand_in() -> None:
    mine = {"STRIPE_SECRET_KEY": "sk_test_mine", "STRIPE_WEBHOOK_SECRET": "whsec_mine"}

    filled = load(mine).with_embedded(GENERATED)

    assert filled.stripe_secret_key == "sk_test_mine"
    assert filled.stripe_webhook_secrets == ("whsec_mine",)
    assert filled.stripe_api_base == "https://api.stripe.com"


@pytest.mark.parametrize(
    ("environ", "public_url", "origins"),
    [
        ({}, "http://127.0.0.1:8123", ("http://127.0.0.1:8123", "http://localhost:8123")),
        (
            {"DISPATCH_HOST": "0.0.0.0"},
            "http://127.0.0.1:8123",
            ("http://127.0.0.1:8123", "http://localhost:8123"),
        ),
        ({"DISPATCH_HOST": "192.0.2.1"}, "http://192.0.2.1:8123", ("http://192.0.2.1:8123",)),
        (
            {"DISPATCH_HOST": "2001:db8::1"},
            "http://[2001:db8::1]:8123",
            ("http://[2001:db8::1]:8123",),
        ),
        (
            {"DISPATCH_HOST": "192.0.2.1", "DISPATCH_PUBLIC_URL": "https://dispatch.example/base/"},
            "https://dispatch.example/base",
            ("https://dispatch.example",),
        ),
        (
            {"DISPATCH_ALLOWED_ORIGINS": "https://App.example"},
            "http://127.0.0.1:8123",
            ("https://app.example",),
        ),
    ],
)
def test_public_url_and_origins_follow_from_host_and_port(
    environ: dict[str, str], public_url: str, origins: tuple[str, ...]
) -> None:
    config = load(environ).listening_on(8123)

    assert config.port == 8123
    assert config.public_url == public_url
    assert set(config.allowed_origins) == set(origins)


def test_the_configuration_cannot_be_changed() -> None:
    config = load({})

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("host", ["id.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]"])
def test_who_is_who_is_not_read_over_an_open_network(host: str) -> None:
    with pytest.raises(ConfigError, match="DISPATCH_JWKS_URL must begin with https://"):
        load({"DISPATCH_JWKS_URL": f"http://{host}/jwks"})


@pytest.mark.parametrize("url", ["https://id.example/jwks", "http://127.0.0.1:1/", "http://[::1]"])
def test_who_is_who_is_read_over_https_or_on_this_machine(url: str) -> None:
    names = ("DISPATCH_JWT_ISSUER", "DISPATCH_JWT_AUDIENCE")

    config = load({"DISPATCH_JWKS_URL": url, **dict.fromkeys(names, "x")})

    assert config.jwks_url == url.rstrip("/")
