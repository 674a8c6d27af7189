"""Sending mail to real SMTP servers: encrypted, to one address, and what is said when it fails."""

import asyncio
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from dispatch import mail
from dispatch.errors import Refused, Unavailable
from dispatch.mail import Mail, Mailer
from tests.integration.mail_server import PASSWORD, USER, Mailbox, certificates, mail_server

LETTER = Mail(
    to="maya@mechanics.example",
    subject="Zoë's garage invites you",
    text="Grüße,\n\n" + "https://dispatch.example/join?token=" + "x" * 60 + "\n",
    message_id="00000000-0000-0000-0000-000000000001",
)


def url(mailbox: Mailbox, *, scheme: str = "smtp", log_in: bool = False, query: str = "") -> str:
    who = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@" if log_in else ""
    return f"{scheme}://{who}127.0.0.1:{mailbox.port}{query}"


async def failure(mailer: Mailer) -> Unavailable | Refused:
    with pytest.raises((Unavailable, Refused)) as failed:
        await mailer.send(LETTER)
    assert isinstance(failed.value, Unavailable | Refused)
    return failed.value


async def test_a_mail_arrives_as_it_was_written() -> None:
    async with mail_server() as mailbox:
        await Mailer(url(mailbox, query="?from=Dispatch+%3Chello@dispatch.example%3E")).send(LETTER)

    (message,) = mailbox.mails
    assert mailbox.recipients == [["maya@mechanics.example"]]
    assert mailbox.senders == ["hello@dispatch.example"]
    assert message["From"] == "Dispatch <hello@dispatch.example>"
    assert (message["To"], message["Subject"]) == (LETTER.to, LETTER.subject)
    assert message["Message-ID"] == f"<{LETTER.message_id}@127.0.0.1>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    assert message.get_content().replace("\r\n", "\n") == LETTER.text


async def test_what_is_said_in_a_header_stays_in_that_header() -> None:
    injected = Mail(to=LETTER.to, subject="Hello\r\nBcc: eve@evil.example", text="", message_id="1")
    async with mail_server() as mailbox:
        with pytest.raises(ValueError, match="linefeed or carriage return"):
            await Mailer(url(mailbox)).send(injected)

    assert mailbox.tried == 0


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_it_logs_in_over_tls(tmp_path: Path, scheme: str) -> None:
    ours = certificates(tmp_path)
    how = {"starttls": ours.server} if scheme == "smtp" else {"tls": ours.server}
    async with mail_server(**how, log_in=True) as mailbox:
        await Mailer(url(mailbox, scheme=scheme, log_in=True), ours.client).send(LETTER)

    assert len(mailbox.mails) == 1
    assert set(mailbox.log_ins) == {USER}
    assert scheme == "smtps" or mailbox.encrypted == [True]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_nothing_is_said_to_a_server_that_cannot_show_who_it_is(
    tmp_path: Path, scheme: str
) -> None:
    ours = certificates(tmp_path)
    how = {"starttls": ours.server} if scheme == "smtp" else {"tls": ours.server}
    stranger = ssl.create_default_context()
    async with mail_server(**how, log_in=True) as mailbox:
        failed = await failure(Mailer(url(mailbox, scheme=scheme, log_in=True), stranger))

    assert isinstance(failed, Unavailable)
    assert (mailbox.log_ins, mailbox.tried) == ([], 0)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [("127.0.0.1", None), ("localhost", None), ("[::1]", None), ("mail.example", True)],
)
def test_only_on_this_machine_a_mail_may_go_in_the_clear(host: str, wanted: bool | None) -> None:
    assert Mailer(f"smtp://{host}:25")._start_tls() is wanted
    assert Mailer(f"smtps://{host}:25")._start_tls() is False


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("554 5.7.1 no: maya@mechanics.example x-token", Refused),
        ("552 too much", Refused),
        ("451 try later: x-token", Unavailable),
        ("421 going down", Unavailable),
    ],
)
async def test_a_refusal_is_for_good_or_for_now_and_repeats_nothing(
    answer: str, kind: type[Exception]
) -> None:
    async with mail_server() as mailbox:
        mailbox.answer = answer
        failed = await failure(Mailer(url(mailbox)))

    assert type(failed) is kind
    assert failed.message == f"the mail server says {answer[:3]}"


@pytest.mark.parametrize(("answer", "kind"), [("550 who?", Refused), ("450 full", Unavailable)])
async def test_an_address_may_be_refused_for_good_or_for_now(
    answer: str, kind: type[Exception]
) -> None:
    async with mail_server() as mailbox:
        mailbox.to_recipient = answer
        failed = await failure(Mailer(url(mailbox)))

    assert type(failed) is kind
    assert (failed.message, mailbox.tried) == (f"the mail server says {answer[:3]}", 0)


async def test_a_wrong_password_of_ours_can_be_mended(tmp_path: Path) -> None:
    ours = certificates(tmp_path)
    async with mail_server(starttls=ours.server, log_in=True) as mailbox:
        wrong = f"smtp://{USER}:wrong@127.0.0.1:{mailbox.port}"
        failed = await failure(Mailer(wrong, ours.client))

    assert isinstance(failed, Unavailable)
    assert failed.message == "the mail server says 535"


async def test_a_server_that_is_away_or_hangs_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mail, "SEND_SECONDS", 0.2)
    async with mail_server() as mailbox:
        pass
    away = await failure(Mailer(url(mailbox)))
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hanging = await failure(Mailer(f"smtp://127.0.0.1:{port}"))
    server.close()

    assert isinstance(away, Unavailable)
    assert isinstance(hanging, Unavailable)


@pytest.mark.parametrize(
    ("given", "sender"),
    [
        ("smtp://mail.example?from=a@b.example", "a@b.example"),
        ("smtp://me%40b.example:secret@mail.example", "me@b.example"),
        ("smtp://me:secret@mail.example", "dispatch@mail.example"),
    ],
)
def test_who_writes_follows_from_the_url(given: str, sender: str) -> None:
    assert Mailer(given).sender == sender
