"""Mail: one message, handed in to the mail server by SMTP."""

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from enum import StrEnum

import aiosmtplib

from libs.common.errors import invalid

TIME_LIMIT = timedelta(seconds=15)

# RFC 5321's dot-string and domain; quoted local parts and address literals are left out on purpose.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{1,64}}@){_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*")


class Security(StrEnum):
    """How the connection to the mail server is protected."""

    NONE = "none"
    """Not at all: for a server on the same machine."""
    STARTTLS = "starttls"
    """Begins in the clear and must be upgraded before anything is said."""
    TLS = "tls"
    """Encrypted from the first byte."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in, and in whose name."""

    host: str
    port: int
    sender: str
    """The address in From, such as `alerts@plant.example`."""
    sender_name: str = "Plant alerts"
    security: Security = Security.STARTTLS
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls_context: ssl.SSLContext | None = None
    """None: the machine's trusted authorities."""

    @property
    def domain(self) -> str:
        """The sender's domain, in whose name message ids are given."""
        return self.sender.rpartition("@")[2]


class Verdict(StrEnum):
    """What became of a message that was handed in."""

    TAKEN = "taken"
    LATER = "later"
    """Not taken now; may be later."""
    REFUSED = "refused"
    """It will never go this way; another attempt would end the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The mail server's verdict, and its words, or what kept it from speaking."""

    verdict: Verdict
    words: str


def new_message(
    server: MailServer, to: str, *, subject: str, message_id: str, at: datetime
) -> EmailMessage:
    """Return a message without content yet. Raises Invalid if `to` is no single address.

    `message_id` is its name before the `@`.
    """
    check_address(to)
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = Address(on_one_line(server.sender_name), addr_spec=server.sender)
    message["To"] = Address(addr_spec=to)
    message["Subject"] = shorten(on_one_line(subject))
    message["Date"] = at
    message["Message-ID"] = f"<{message_id}@{server.domain}>"
    # Out-of-office replies to a machine help nobody (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    return message


async def hand_in(
    server: MailServer, message: EmailMessage, time_limit: timedelta = TIME_LIMIT
) -> Answer:
    """Make one attempt, of so long at most; never raises for what the server does.

    What the server refuses for good about the recipient or the message is REFUSED; all else (no
    connection, a login that fails, "try later") is LATER.
    """
    limit_s = time_limit.total_seconds()
    try:
        async with asyncio.timeout(limit_s):
            _, words = await aiosmtplib.send(
                message,
                hostname=server.host,
                port=server.port,
                # None would ask DNS for our own name, and block on it.
                local_hostname=server.domain,
                username=server.username,
                password=server.password,
                use_tls=server.security is Security.TLS,
                start_tls=server.security is Security.STARTTLS,
                tls_context=server.tls_context,
                timeout=limit_s,
            )
    except aiosmtplib.SMTPRecipientsRefused as refused:
        return _read_refusal(refused.recipients[0])
    except (aiosmtplib.SMTPRecipientRefused, aiosmtplib.SMTPDataError) as refused:
        return _read_refusal(refused)
    except aiosmtplib.SMTPNotSupported:
        return Answer(Verdict.REFUSED, "the mail server cannot take this address")
    except TimeoutError:
        return Answer(Verdict.LATER, "the mail server did not answer in time")
    except aiosmtplib.SMTPResponseException as response:
        return Answer(Verdict.LATER, f"the mail server answered {response.code}")
    except (aiosmtplib.SMTPException, OSError):
        return Answer(Verdict.LATER, "cannot reach the mail server")
    return Answer(Verdict.TAKEN, words)


def check_address(address: str, pointer: str = "/address") -> None:
    """Raise Invalid at `pointer` unless it is one plain ASCII mail address, without a name."""
    if len(address) > 254 or not _ADDRESS.fullmatch(address):
        raise invalid(pointer, "must be one mail address such as ana@plant.example")


def on_one_line(text: str) -> str:
    """Return the text without line breaks and other controls, which could begin a new header."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, length: int = 180) -> str:
    """Return the text, or its beginning, of a readable length."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _read_refusal(
    refused: aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError,
) -> Answer:
    verdict = Verdict.REFUSED if refused.code >= 500 else Verdict.LATER
    return Answer(verdict, f"the mail server answered {refused.code}")
