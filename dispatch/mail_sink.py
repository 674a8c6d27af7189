"""A mail server that delivers nothing: it keeps each mail as a file, for whoever tries things out.

`python -m dispatch.mail_sink --port P --data-dir DIR`, on loopback only; `dispatch serve` runs one
beside its embedded servers and never otherwise. Imports nothing of ours: it knows SMTP and a
folder. It says where each mail is, and only its owner can read it; beyond MAX_MAILS the oldest go.
Ends with 1, and one line that says why, where it cannot serve.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

HOST: Final = "127.0.0.1"
MAX_BYTES: Final = 1024 * 1024
MAX_MAILS: Final = 200


class Keeper:
    """What aiosmtpd asks about a mail."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keeps it; the answer of SMTP. The name is aiosmtpd's."""
        content = envelope.content
        assert isinstance(content, bytes), "it is not asked to decode anything"
        path = self._keep(content)
        say(f"a mail to {', '.join(envelope.rcpt_tos)} is kept in {path}")
        return "250 kept, and delivered to nobody"

    def _keep(self, content: bytes) -> Path:
        path = self._folder / f"{time.time_ns()}.eml"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        for old in sorted(self._folder.glob("*.eml"))[:-MAX_MAILS]:
            old.unlink(missing_ok=True)
        return path


async def serve(port: int, folder: Path) -> None:
    """Serves until SIGTERM or SIGINT. Raises OSError where it cannot listen."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    keeper = Keeper(folder)
    server = await loop.create_server(
        lambda: SMTP(keeper, hostname="localhost", data_size_limit=MAX_BYTES, loop=loop),
        HOST,
        port,
    )
    say(f"mails are kept in {folder}; listening on {server.sockets[0].getsockname()}")
    await stop.wait()
    server.close()


def say(line: str) -> None:
    """For whoever runs it: standard output is the server's, which says there that it is ready."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dispatch.mail_sink")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True, help="where mails are kept")
    asked = parser.parse_args()
    try:
        asked.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncio.run(serve(asked.port, asked.data_dir))
    except OSError as error:
        say(f"cannot serve: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
