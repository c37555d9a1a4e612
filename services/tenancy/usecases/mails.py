"""What is done with mail: what it says is gathered when it is sent, and what became of it is kept."""

from datetime import datetime
from urllib.parse import urlencode, urljoin
from uuid import UUID

from libs.common.errors import NotFound
from libs.common.mail import Answer, Verdict
from services.tenancy.domain.invitation import hash_token
from services.tenancy.domain.mail import Facts, Mail, Purpose, next_attempt
from services.tenancy.domain.token import (
    CONFIRMED_WITHIN,
    RESET_WITHIN,
    Prefix,
    TokenPurpose,
    new_token,
)
from services.tenancy.store.store import TenancyStore


async def prepare(store: TenancyStore, mail: Mail, public_url: str, now: datetime) -> Facts | None:
    """Return what a mail says, with a token made now; None if it has become needless.

    Each attempt has a token of its own, so that none is kept but as a hash.
    """
    try:
        tenant = await store.tenants.get(store.tenant_id)
    except NotFound:
        return None
    link, until = "", None
    match mail.purpose, mail.about:
        case Purpose.INVITATION, UUID() as user_id:
            token = new_token(Prefix.INVITATION)
            until = await store.invitations.keep_mailed(user_id, hash_token(token))
            link = _link(public_url, "accept-invitation", token)
        case Purpose.REGISTRATION, UUID() as registration_id:
            token, until = new_token(Prefix.REGISTRATION), now + CONFIRMED_WITHIN
            if not await store.registration.keep_token(registration_id, hash_token(token), until):
                return None
            link = _link(public_url, "verify-email", token)
        case Purpose.CONFIRM_ADDRESS, UUID() as user_id:
            token, until = new_token(Prefix.CONFIRM), now + CONFIRMED_WITHIN
            await store.users.keep_token(user_id, hash_token(token), TokenPurpose.CONFIRM, until)
            link = _link(public_url, "confirm-email", token)
        case Purpose.PASSWORD_RESET, UUID() as user_id:
            token, until = new_token(Prefix.RESET), now + RESET_WITHIN
            await store.users.keep_token(user_id, hash_token(token), TokenPurpose.RESET, until)
            link = _link(public_url, "reset-password", token)
        case _:
            return Facts(tenant.name, mail.created_at, urljoin(public_url, "forgot-password"))
    if until is None or until <= now:
        return None
    return Facts(tenant.name, mail.created_at, link, until)


async def record(store: TenancyStore, mail: Mail, answer: Answer, now: datetime) -> bool:
    """Keep what became of an attempt; return whether the mail was given up."""
    again = next_attempt(mail, now) if answer.verdict is Verdict.LATER else None
    if answer.verdict is Verdict.TAKEN:
        await store.mails.remove(mail.id)
    elif again is not None:
        await store.mails.put_off(mail.id, again, answer.words)
    else:
        await store.mails.give_up(mail.id, answer.words)
        return True
    return False


def _link(public_url: str, page: str, token: str) -> str:
    # After the hash: a browser sends that to nobody, so no log and no Referer holds the token.
    return urljoin(public_url, page) + "#" + urlencode({"token": token})
