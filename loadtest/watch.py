"""`python -m loadtest.watch`: one person's websocket, printed frame by frame for people to read.

Logs in over HTTP, opens the websocket as that person, and prints what the server says until it is
stopped. It answers nothing. Imports `api`, `client`, `history`. Exit code 1 when it cannot log in.
"""

import argparse
import asyncio
import contextlib
import random
import re
import sys
from datetime import datetime

import aiohttp
import msgspec

from loadtest.api import Api, ApiError
from loadtest.client import Client, Refused
from loadtest.history import Connected, Event, Frame, History, Lost, Received

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
DULL = ("type", "server_time", "user_id", "connection_id", "node_id", "heartbeat_seconds", "re")


def main(arguments: list[str] | None = None) -> int:
    """Watches until Ctrl-C and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.watch", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--email", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--raw", action="store_true", help="the frames as JSON, as they came")
    parser.add_argument("--seconds", type=float, help="stop by itself after so long")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_watch(options))
    except (ApiError, Refused, aiohttp.ClientError, OSError) as fault:
        print(f"watch: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


async def _watch(options: argparse.Namespace) -> None:
    async with aiohttp.ClientSession() as http:
        api = Api(http, options.url)
        token = await api.login(options.email, options.password)
    history = History(keeps=False)
    history.listeners.append(lambda event: _show(event, raw=options.raw))
    client = Client(api.websocket_url, options.email, token, history, random.Random())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.run(), options.seconds)


def _show(event: Event, *, raw: bool) -> None:
    match event:
        case Received() if raw:
            print(msgspec.json.encode(event.frame).decode(), flush=True)
        case Received():
            print("\n".join(readable(event.frame)), flush=True)
        case Connected():
            print("connected", file=sys.stderr)
        case Lost() if event.code is not None:
            print(f"connection lost ({event.code}), connecting again", file=sys.stderr)


def readable(frame: Frame) -> list[str]:
    """One line for a frame; a snapshot has a line for each thing in it as well."""
    time = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005 - the watcher's own clock
    kind = frame.get("type", "?")
    snapshot = frame.get("snapshot")
    if snapshot is None:
        return [f"{time}  {kind:<16} {_fields(frame)}"]
    plain = {key: value for key, value in snapshot.items() if not isinstance(value, list)}
    lines = [f"{time}  {kind:<16} {_fields({'role': frame.get('role')} | plain)}"]
    for name, items in snapshot.items():
        if isinstance(items, list):
            lines += [f"{'':<10}{name[:-1]:<16} {_fields(item)}" for item in items]
    return lines


def _fields(frame: Frame) -> str:
    return "  ".join(
        f"{key}={_value(value)}"
        for key, value in frame.items()
        if key not in DULL and value is not None
    )


def _value(value: object) -> str:
    """Ids are cut to their first part, and times to the time of day, both as the server's."""
    match value:
        case dict():
            return str(value.get("name") or value.get("id") or msgspec.json.encode(value).decode())
        case str() if ID.fullmatch(value):
            return value.partition("-")[0]
        case str() if INSTANT.fullmatch(value):
            return value.partition("T")[2]
        case str() if " " in value:
            return f'"{value}"'
        case _:
            return str(value)


if __name__ == "__main__":
    sys.exit(main())
