"""What becomes of a refresh token."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.gateway.domain.session import RefreshToken, Session, Verdict, judge

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def a_session(**more: datetime) -> Session:
    return Session(
        id=uuid4(),
        tenant_id=uuid4(),
        user_id=uuid4(),
        created_at=NOW,
        expires_at=more.get("expires_at", NOW + timedelta(days=90)),
        revoked_at=more.get("revoked_at"),
    )


def a_token(used_s_ago: float | None = None, expires_at: datetime | None = None) -> RefreshToken:
    used_at = None if used_s_ago is None else NOW - timedelta(seconds=used_s_ago)
    return RefreshToken(b"h", uuid4(), None, expires_at or NOW + timedelta(days=14), used_at)


@pytest.mark.parametrize(
    ("token", "successor_used", "verdict"),
    [
        (a_token(), False, Verdict.ROTATE),
        (a_token(used_s_ago=0), False, Verdict.ROTATE),
        (a_token(used_s_ago=10), False, Verdict.ROTATE),
        (a_token(used_s_ago=10.001), False, Verdict.REVOKE_FAMILY),
        (a_token(used_s_ago=1), True, Verdict.REVOKE_FAMILY),
        (a_token(expires_at=NOW), False, Verdict.REFUSE),
    ],
)
def test_only_the_immediate_predecessor_is_forgiven_and_only_just_now(
    token: RefreshToken, successor_used: bool, verdict: Verdict
) -> None:
    verdict_now = judge(
        a_session(), token, successor_used=successor_used, sibling_used=False, now=NOW
    )
    assert verdict_now is verdict


@pytest.mark.parametrize("token", [a_token(), a_token(used_s_ago=0), a_token(used_s_ago=11)])
def test_of_two_successors_one_alone_goes_on(token: RefreshToken) -> None:
    verdict = judge(a_session(), token, successor_used=False, sibling_used=True, now=NOW)
    assert verdict is Verdict.REVOKE_FAMILY


@pytest.mark.parametrize("session", [a_session(revoked_at=NOW), a_session(expires_at=NOW)])
def test_nothing_continues_a_session_that_is_over(session: Session) -> None:
    verdict = judge(session, a_token(), successor_used=False, sibling_used=False, now=NOW)
    assert verdict is Verdict.REFUSE
