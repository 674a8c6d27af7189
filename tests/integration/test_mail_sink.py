"""The mail server of the embedded mode: it keeps, bounds and says, and serves nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from dispatch import mail_sink
from dispatch.children import free_port
from dispatch.mail import Mail, Mailer
from dispatch.mail_sink import Keeper
from tests.support import eventually


def sink(folder: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "dispatch.mail_sink"),
            *("--port", str(port), "--data-dir", str(folder)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept_in(folder: Path) -> list[Path]:
    """The mails, the oldest first."""
    return sorted(folder.glob("*.eml"))


async def test_what_is_sent_is_in_a_file_for_its_owner_and_standard_output_stays_the_servers(
    tmp_path: Path,
) -> None:
    port = free_port()
    process = sink(tmp_path / "mails", port)
    mail = Mail(to="maya@mechanics.example", subject="Hello", text="a secret\n", message_id="1")

    async def sent() -> bool:
        try:
            await Mailer(f"smtp://127.0.0.1:{port}").send(mail)
        except Exception:  # it is not up yet
            return False
        return True

    await eventually(sent)
    process.terminate()
    output, log = process.communicate(timeout=10)

    (kept,) = kept_in(tmp_path / "mails")
    assert kept.read_text().endswith("\na secret\n")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert output == ""
    assert f"a mail to maya@mechanics.example is kept in {kept}" in log
    assert "a secret" not in log


def test_a_port_that_is_in_use_ends_it_with_one_line(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = sink(tmp_path, taken.getsockname()[1])
        _, log = process.communicate(timeout=10)

    assert process.returncode == 1
    assert log.startswith("cannot serve: ")
    assert log.count("\n") == 1


async def test_only_the_latest_mails_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_sink, "MAX_MAILS", 3)
    keeper = Keeper(tmp_path)
    server, session = SMTP(keeper), Session(None)  # type: ignore[arg-type]  # neither is used
    for number in range(5):
        envelope = Envelope()
        envelope.content = str(number).encode()
        await keeper.handle_DATA(server, session, envelope)

    assert [path.read_text() for path in kept_in(tmp_path)] == ["2", "3", "4"]
