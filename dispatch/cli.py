"""The command `dispatch`: what operators type.

Its one job: arguments and environment from outside, one call inside, an exit code: 0 done, 1
failed (one line on standard error says why), 2 wrong usage or configuration. It may import
everything, each part late, so that `--help` is fast and a missing extra harms only who needs it.
"""

import argparse
import asyncio
import contextlib
import getpass
import json
import os
import secrets
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from uuid import UUID

from dispatch.config import Config, describe, load
from dispatch.errors import BadRequest, ConfigError, DispatchError, NotFound, StartError

T = TypeVar("T")

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
TOKEN_TTL_SECONDS = 3600.0
MAX_WORKERS = 64
ROLES = ("customer", "mechanic", "workshop", "admin")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never a traceback for what an operator can meet."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except ConfigError as error:
        for problem in error.problems:
            print(f"dispatch: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except DispatchError as error:
        _fail(error.message)
        return EXIT_USAGE if isinstance(error, BadRequest) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        _fail(str(error))
        return EXIT_FAILED


def _fail(message: str) -> None:
    print(f"dispatch: {'; '.join(message.splitlines())}", file=sys.stderr)


# --- the commands ---------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    from dispatch.supervisor import serve

    config = load(
        os.environ,
        embedded_dir=arguments.embedded,
        host=arguments.host,
        port=arguments.port,
    )
    return serve(config, arguments.workers)


def _migrate(arguments: argparse.Namespace) -> int:
    from dispatch.migrate import migrate

    with _configured(arguments) as config:
        applied = asyncio.run(migrate(config.database_url))
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("nothing to apply")
    return EXIT_DONE


def _seed_demo(arguments: argparse.Namespace) -> int:
    from dispatch.seed import seed_demo

    with _migrated(arguments) as config:
        people = _run(seed_demo(config, arguments.mechanics, arguments.customers))
    print(json.dumps(people, indent=2, default=str))
    return EXIT_DONE


def _token(arguments: argparse.Namespace) -> int:
    from dispatch.auth import issue_token

    with _configured(arguments) as config:
        users = _fetch(
            config,
            "SELECT token_epoch FROM users WHERE id = $1 AND role = $2",
            arguments.sub,
            arguments.role,
        )
    if not users:
        raise NotFound(f"no {arguments.role} has the id {arguments.sub}")
    epoch = users[0]["token_epoch"]
    print(issue_token(config.jwt_secret, arguments.sub, arguments.role, epoch, arguments.ttl))
    return EXIT_DONE


def _create_admin(arguments: argparse.Namespace) -> int:
    from dispatch.database import close_pool, open_pool
    from dispatch.people import create_admin

    password, is_generated = _admin_password()

    async def create(database_url: str) -> UUID:
        pool = await open_pool(database_url, size=1)
        try:
            return await create_admin(pool, arguments.email, arguments.name, password)
        finally:
            await close_pool(pool)

    with _migrated(arguments) as config:
        admin_id = _run(create(config.database_url))
    print(f"id        {admin_id}")
    print(f"email     {arguments.email}")
    if is_generated:
        print(f"password  {password}   (shown this once)")
    return EXIT_DONE


def _admin_password() -> tuple[str, bool]:
    """From the environment, else asked for where somebody can answer, else generated (True)."""
    password = os.environ.get("DISPATCH_ADMIN_PASSWORD", "")
    if not password and sys.stdin.isatty():
        password = getpass.getpass("Password of the new admin (empty: generate one): ")
    return (password, False) if password else (secrets.token_urlsafe(16), True)


def _vapid_key(arguments: argparse.Namespace) -> int:
    from dispatch.push_crypto import Vapid, new_private_key

    private_key = new_private_key()
    print(f"VAPID_PRIVATE_KEY={private_key}")
    print(f"# its public key, which browsers subscribe with: {Vapid(private_key, '').public_key}")
    return EXIT_DONE


def _check_config(arguments: argparse.Namespace) -> int:
    config = load(os.environ, embedded_dir=arguments.embedded)
    if config.embedded:
        from dispatch.embedded import attach, kept_values

        if config.data_dir.exists():
            values = attach(config.data_dir) or kept_values(config.data_dir)
            config = config.with_embedded(values)
    absent = {"embedded": "(made at the first start)"}
    rows = [
        (row.name, row.value or absent.get(row.source, "-"), row.source) for row in describe(config)
    ]
    _print_table(("variable", "value", "source"), rows)
    return EXIT_DONE


def _explain(arguments: argparse.Namespace) -> int:
    if arguments.mechanic is not None:
        return _explain_mechanic(arguments)
    if arguments.hours is not None:
        raise BadRequest("--hours is for --mechanic: a request is explained from its beginning")
    from dispatch.explain_text import explain

    with _configured(arguments) as config:
        print(_run(explain(config, arguments.request)))
    return EXIT_DONE


def _explain_mechanic(arguments: argparse.Namespace) -> int:
    from dispatch.fairness import HOURS, explain_mechanic

    with _configured(arguments) as config:
        print(_run(explain_mechanic(config, arguments.mechanic, arguments.hours or HOURS)))
    return EXIT_DONE


def _replay(arguments: argparse.Namespace) -> int:
    from dispatch.replay import replay, replay_all

    with _configured(arguments) as config:
        if arguments.request is None:
            is_same = _run(replay_all(config, print))
        else:
            told, is_same = _run(replay(config, arguments.request))
            print(told)
    return EXIT_DONE if is_same else EXIT_FAILED


def _books(arguments: argparse.Namespace) -> int:
    from dispatch.books_text import as_json, as_text, books

    with _configured(arguments) as config:
        found = _run(books(config))
    print(json.dumps(as_json(found), indent=2) if arguments.json else as_text(found))
    return EXIT_DONE if found.match else EXIT_FAILED


def _nodes(arguments: argparse.Namespace) -> int:
    with _configured(arguments) as config:
        rows = _fetch(
            config,
            """SELECT node_id, pid, clients, lag_ms, lease_until FROM nodes
               WHERE lease_until > clock_timestamp() ORDER BY started_at""",
        )
    nodes = [
        {
            "node_id": str(row["node_id"]),
            "pid": row["pid"],
            "clients": row["clients"],
            "lag": row["lag_ms"],
            "lease": row["lease_until"].isoformat(timespec="milliseconds"),
        }
        for row in rows
    ]
    if arguments.json:
        print(json.dumps(nodes, indent=2))
    else:
        header = ("node_id", "pid", "clients", "lag", "lease")
        _print_table(header, [tuple(str(node[name]) for name in header) for node in nodes])
    return EXIT_DONE


# --- what they share ------------------------------------------------------------------------------


@contextlib.contextmanager
def _configured(arguments: argparse.Namespace) -> Iterator[Config]:
    """The configuration, with embedded servers found or started for the while and migrated."""
    config = load(os.environ, embedded_dir=arguments.embedded)
    if not config.embedded:
        yield config
        return
    from dispatch.embedded import servers
    from dispatch.migrate import migrate

    with servers(config.data_dir) as values:
        config = config.with_embedded(values)
        if arguments.run is not _migrate:
            asyncio.run(migrate(config.database_url))
        yield config


@contextlib.contextmanager
def _migrated(arguments: argparse.Namespace) -> Iterator[Config]:
    """The same for commands that write: the database is migrated, whosever it is."""
    from dispatch.migrate import migrate

    with _configured(arguments) as config:
        asyncio.run(migrate(config.database_url))
        yield config


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what Postgres refuses becomes a StartError that says what to do."""
    import asyncpg

    try:
        return asyncio.run(work)
    except asyncpg.UndefinedTableError:
        raise StartError("the database is not migrated: run `dispatch migrate` first") from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartError(f"Postgres refused: {error}") from None


def _fetch(config: Config, sql: str, *parameters: object) -> list[Any]:
    from dispatch.migrate import connect

    async def fetch() -> list[Any]:
        connection = await connect(config.database_url)
        try:
            return await connection.fetch(sql, *parameters)
        finally:
            await connection.close(timeout=5)

    return _run(fetch())


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


# --- the arguments --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dispatch", description="Realtime dispatch of paid jobs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., int], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        command.add_argument(
            "--embedded", metavar="DIR", help="use the embedded servers with their data in DIR"
        )
        return command

    serve = add("serve", _serve, "run the server")
    serve.add_argument("--host")
    serve.add_argument("--port", type=_port, help="0 takes a free one")
    serve.add_argument("--workers", type=_workers, default=1, help="processes; each is a node")
    add("migrate", _migrate, "bring the database to the schema of this version")
    seed = add("seed-demo", _seed_demo, "make a small city and print its people as JSON")
    seed.add_argument("--mechanics", type=_count, metavar="N")
    seed.add_argument("--customers", type=_count, metavar="N")
    token = add("token", _token, "print a token for somebody who exists")
    token.add_argument("--role", required=True, choices=ROLES)
    token.add_argument("--sub", required=True, type=UUID, metavar="ID")
    token.add_argument("--ttl", type=_ttl, default=TOKEN_TTL_SECONDS, metavar="SECONDS")
    admin = add("create-admin", _create_admin, "make an admin (DISPATCH_ADMIN_PASSWORD, or asked)")
    admin.add_argument("--email", default="operator@dispatch.example")
    admin.add_argument("--name", default="Operator")
    add("vapid-key", _vapid_key, "print a fresh key for web push, as the environment takes it")
    add("check-config", _check_config, "print every setting and where it came from")
    explain = add(
        "explain", _explain, "say how a request was dispatched, or how one mechanic fares"
    )
    explained = explain.add_mutually_exclusive_group(required=True)
    explained.add_argument("request", type=UUID, nargs="?", metavar="REQUEST")
    explained.add_argument("--mechanic", type=UUID, metavar="ID")
    explain.add_argument("--hours", type=_hours, metavar="N", help="of the mechanic's record (24)")
    replay = add(
        "replay", _replay, "decide a recorded request again and compare with what happened"
    )
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("request", nargs="?", type=UUID, metavar="REQUEST")
    which.add_argument("--all", action="store_true", help="every request on record")
    books = add("books", _books, "prove that all money that came in is somewhere, to the cent")
    books.add_argument("--json", action="store_true")
    nodes = add("nodes", _nodes, "list the living nodes; lag is in milliseconds")
    nodes.add_argument("--json", action="store_true")
    return parser


def _between(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


_port = _between(0, 65535, int)
_workers = _between(1, MAX_WORKERS, int)
_count = _between(0, 100_000, int)
_ttl = _between(1, 365 * 24 * 3600, float)
_hours = _between(1, 31 * 24, int)


if __name__ == "__main__":
    sys.exit(main())
