"""Mail: one plain text to one address, by the SMTP server that is configured.

One job: `Mailer.send`. Imports `config` and `errors`, and aiosmtplib late. Credentials and mails
leave this machine encrypted only: by TLS (`smtps://`) or STARTTLS, with a certificate that is
checked; a server on loopback that offers neither is used without. Raises `Unavailable` where trying
later is right and `Refused` where the server said no for good, neither with anything that the mail
or the server said.
"""

import socket
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct

from dispatch.config import Config, is_loopback
from dispatch.errors import Refused, Unavailable

SEND_SECONDS: Final = 20.0  # each step of the conversation
_PORTS: Final[Mapping[str, int]] = {"smtp": 587, "smtps": 465}


class Mail(Struct, frozen=True, kw_only=True):
    """What is sent. `to` is one plain address; `message_id` is the same for the same mail."""

    to: str
    subject: str
    text: str
    message_id: str


class Mailer:
    """The way to one SMTP server: `smtp[s]://[user:password@]host[:port][?from=address]`."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: whom to trust, for tests; by default whom this machine trusts."""
        parts = urlsplit(url)
        assert parts.hostname is not None, "the configuration checks the URL"
        self._host = parts.hostname
        self._port = parts.port or _PORTS[parts.scheme]
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._by_tls = parts.scheme == "smtps"
        self._tls = tls
        sender = self._user if self._user and "@" in self._user else f"dispatch@{self._host}"
        self.sender = parse_qs(parts.query).get("from", [sender])[0]

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """As configured; None where mail is not."""
        return cls(config.smtp_url) if config.smtp_url else None

    async def send(self, mail: Mail) -> None:
        """Returns once the server has taken the mail. Raises `Unavailable` or `Refused`."""
        import aiosmtplib

        try:
            await aiosmtplib.send(
                self._message(mail),
                sender=parseaddr(self.sender)[1],
                recipients=[mail.to],
                hostname=self._host,
                port=self._port,
                username=self._user,
                password=self._password,
                use_tls=self._by_tls,
                start_tls=self._start_tls(),
                tls_context=self._tls,
                local_hostname=socket.gethostname(),  # or it looks ours up, for seconds
                timeout=SEND_SECONDS,
            )
        except aiosmtplib.SMTPResponseException as refused:
            raise _said(refused.code) from None
        except aiosmtplib.SMTPRecipientsRefused as refused:
            raise _said(refused.recipients[0].code) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable(f"the mail server does not answer ({type(error).__name__})") from None

    def _start_tls(self) -> bool | None:
        """None: where it is offered."""
        if self._by_tls:
            return False
        return None if is_loopback(self._host) else True

    def _message(self, mail: Mail) -> EmailMessage:
        """Headers are set through the library's policy, which refuses a line end in any."""
        message = EmailMessage()
        message["From"] = self.sender
        message["To"] = mail.to
        message["Subject"] = mail.subject
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{mail.message_id}@{self._host}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        message.set_content(mail.text)
        return message


def _said(code: int) -> Unavailable | Refused:
    """What a status means (RFC 5321, 4.2.1): 5xx is for good, but for a log-in that we can mend."""
    why = f"the mail server says {code}"
    mendable = code < 500 or code in (530, 534, 535, 538)  # RFC 4954, section 6
    return Unavailable(why) if mendable else Refused(why)
