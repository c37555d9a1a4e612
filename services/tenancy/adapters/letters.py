"""What the mails about accounts say, and what they look like: an HTML page and the same in plain text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape
from jinja2.sandbox import SandboxedEnvironment

from libs.common.mail import on_one_line
from services.tenancy.domain.mail import Purpose

_ENVIRONMENT = SandboxedEnvironment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"], default_for_string=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class Wording:
    """The words of a mail. Each is a template of the facts: `{{ tenant }}`, `{{ until }}`, `{{ at }}`."""

    subject: str
    heading: str
    paragraphs: tuple[str, ...]
    button: str
    """What the link is called. Empty: there is none."""
    aside: str
    """In small print: why one gets this, and what to do if it means nothing to one."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a tenant's mails look like, and its own words where it has some."""

    name: str = "INSA IIoT Platform"
    colour: str = "#175cd3"
    logo_url: str | None = None
    wording: Mapping[Purpose, Wording] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail's subject, and what it says, twice."""

    subject: str
    text: str = field(repr=False)
    page: str = field(repr=False)


_LINK_IS_YOURS = "The link is for you alone: do not pass it on. It is good until {{ until }}."
_WORDINGS: Mapping[Purpose, Wording] = MappingProxyType(
    {
        Purpose.INVITATION: Wording(
            "You are invited to {{ tenant }}",
            "You are invited to {{ tenant }}",
            (
                "An administrator of {{ tenant }} invites you to work with them.",
                (
                    "If you have an account with this address already, you accept with its password;"
                    " otherwise you choose one."
                ),
                _LINK_IS_YOURS,
            ),
            "Accept the invitation",
            "If this means nothing to you, do nothing: nobody joins without the link.",
        ),
        Purpose.REGISTRATION: Wording(
            "Confirm your address for {{ tenant }}",
            "Confirm your address",
            (
                (
                    "Somebody registered at {{ tenant }} with this address. If that was you, confirm it"
                    " with the password that you chose."
                ),
                _LINK_IS_YOURS,
            ),
            "Confirm the address",
            "If it was not you, do nothing: without the link there is no account.",
        ),
        Purpose.ALREADY_REGISTERED: Wording(
            "Somebody registered at {{ tenant }} with your address",
            "You have an account already",
            (
                (
                    "Somebody registered at {{ tenant }} with this address, on {{ at }}. You have an"
                    " account with it, and nothing was changed."
                ),
                (
                    "If it was you: log in with the password that you have, or choose another. To join"
                    " {{ tenant }}, ask one of its administrators for an invitation."
                ),
            ),
            "Choose another password",
            "If it was not you, do nothing: whoever it was learns nothing of you.",
        ),
        Purpose.CONFIRM_ADDRESS: Wording(
            "Confirm your address",
            "Confirm your address",
            (
                (
                    "You asked to confirm that this address is yours. Open the link where you are"
                    " logged in."
                ),
                _LINK_IS_YOURS,
            ),
            "Confirm the address",
            "If it was not you, do nothing, and choose another password by “Forgot your password?”.",
        ),
        Purpose.PASSWORD_RESET: Wording(
            "Choose a new password",
            "Choose a new password",
            (
                (
                    "Somebody asked for another password for the account with this address. If that was"
                    " you, choose one now. It ends all sessions that are open."
                ),
                _LINK_IS_YOURS,
            ),
            "Choose a password",
            "If it was not you, do nothing: the password stays as it is.",
        ),
        Purpose.PASSWORD_CHANGED: Wording(
            "Your password was changed",
            "Your password was changed",
            (
                (
                    "The password of the account with this address was changed on {{ at }}. Other"
                    " sessions were ended."
                ),
                "If it was not you, choose another at once, and tell an administrator.",
            ),
            "It was not me: choose another",
            "You get this whenever the password changes.",
        ),
        Purpose.FACTORS_CHANGED: Wording(
            "What protects your account was changed",
            "What protects your account was changed",
            (
                (
                    "On {{ at }} an authenticator app, a passkey or a recovery code of the account with"
                    " this address was set up, used up, copied or taken away. Your profile shows what"
                    " there is."
                ),
                "If it was not you, choose another password at once, and tell an administrator.",
            ),
            "It was not me: choose another",
            "You get this whenever what is asked for beside your password changes.",
        ),
    }
)


def render(
    purpose: Purpose, look: Look, *, tenant: str, at: datetime, link: str, until: datetime | None
) -> Letter:
    """Return a mail, in the tenant's look and words, or in ours."""
    wording = look.wording.get(purpose) or _WORDINGS[purpose]
    facts = {
        "tenant": on_one_line(tenant),
        "at": _moment(at),
        "until": _moment(until) if until else "",
        "link": link,
    }

    def said(words: str) -> str:
        return _ENVIRONMENT.from_string(words).render(facts)

    page = {
        "look": look,
        "link": link,
        "subject": on_one_line(said(wording.subject)),
        "heading": said(wording.heading),
        "paragraphs": [said(words) for words in wording.paragraphs],
        "button": said(wording.button),
        "aside": said(wording.aside),
    }
    return Letter(
        str(page["subject"]),
        _ENVIRONMENT.get_template("letter.txt").render(page),
        _ENVIRONMENT.get_template("letter.html").render(page),
    )


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%d %b %Y, %H:%M} UTC"
