"""Sessions: one's own, and those of the tenant's users."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends
from pydantic import Field

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.auth.roles import covers
from libs.common.errors import Forbidden, Malformed, NotFound, Unauthenticated, Unavailable
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from services.gateway.api.browser import from_own_page
from services.gateway.api.deps import AllAccounts, AllSessions, IsLoggedIn
from services.gateway.domain.session import Ended, Session
from services.gateway.usecases.sessions import Sessions

router = APIRouter(prefix="/api/v1", dependencies=[Depends(from_own_page)])

CanReadUsers = Annotated[Principal, Depends(Permission("users:read"))]
CanWriteUsers = Annotated[Principal, Depends(Permission("users:write"))]


class SessionOut(Out):
    """A session that is open: a login, and what has been made of it."""

    id: UUID
    created_at: datetime
    last_seen_at: Annotated[datetime | None, Field(description="When it was opened or refreshed last.")]  # fmt: skip
    address: Annotated[str, Field(description="From where that was.", examples=["203.0.113.7"])]
    user_agent: Annotated[str, Field(description="What the program calls itself.", examples=["Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"])]  # fmt: skip
    methods: Annotated[list[str], Field(description="How it was opened: `pwd`, `otp`, `webauthn`, `recovery`, `sso`.", examples=[["pwd", "otp"]])]  # fmt: skip
    current: Annotated[bool, Field(description="Whether it is the one you ask with.")]


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.get("/auth/sessions", tags=["auth"], responses=problems(Unauthenticated, Malformed))
async def list_own_sessions(
    caller: IsLoggedIn, sessions: AllSessions, limit: Limit, cursor: Cursor
) -> Page[SessionOut]:
    """List your open sessions in this tenant, the newest first."""
    access = caller.access
    return await _page(sessions, access.tenant_id, access.user_id, access.session_id, limit, cursor)


@router.delete(
    "/auth/sessions", tags=["auth"], status_code=204, responses=problems(Unauthenticated)
)
async def end_other_sessions(caller: IsLoggedIn, sessions: AllSessions) -> None:
    """End all your sessions in this tenant but the one you ask with."""
    access = caller.access
    await sessions.end(
        access.tenant_id,
        because=Ended.ENDED_BY_USER,
        user_id=access.user_id,
        besides=access.session_id,
    )


@router.delete(
    "/auth/sessions/{session_id}",
    tags=["auth"],
    status_code=204,
    responses=problems(Unauthenticated, NotFound),
)
async def end_own_session(session_id: UUID, caller: IsLoggedIn, sessions: AllSessions) -> None:
    """End one of your sessions: its tokens are void, its live connections are closed."""
    ended = await sessions.end(
        caller.access.tenant_id,
        because=Ended.ENDED_BY_USER,
        session_id=session_id,
        user_id=caller.access.user_id,
    )
    if not ended:
        raise NotFound(f"no session {session_id}")


@router.get(
    "/users/{user_id}/sessions",
    tags=["users"],
    responses=problems(NotFound, Malformed, Unavailable),
)
async def list_sessions_of_user(
    user_id: UUID,
    who: CanReadUsers,
    sessions: AllSessions,
    accounts: AllAccounts,
    limit: Limit,
    cursor: Cursor,
) -> Page[SessionOut]:
    """List a user's open sessions in your tenant, the newest first."""
    await _permissions_of(accounts, user_id, who.tenant_id)
    return await _page(sessions, who.tenant_id, user_id, who.session_id, limit, cursor)


@router.delete(
    "/users/{user_id}/sessions",
    tags=["users"],
    status_code=204,
    responses=problems(NotFound, Forbidden, Unavailable),
)
async def end_sessions_of_user(
    user_id: UUID, who: CanWriteUsers, sessions: AllSessions, accounts: AllAccounts
) -> None:
    """End all of a user's sessions in your tenant."""
    theirs = await _permissions_of(accounts, user_id, who.tenant_id)
    if not all(covers(who.permissions, permission) for permission in theirs):
        raise Forbidden("the user may do more than you")
    await sessions.end(who.tenant_id, because=Ended.ENDED_BY_ADMIN, user_id=user_id)


async def _permissions_of(accounts: AllAccounts, user_id: UUID, tenant_id: UUID) -> frozenset[str]:
    """Return what a user may do in the tenant. Raises NotFound for who may not enter it."""
    account = await accounts.get(user_id)
    membership = account.membership_in(tenant_id) if account else None
    if membership is None:
        raise NotFound(f"no user {user_id}")
    return membership.permissions


async def _page(
    sessions: Sessions,
    tenant_id: UUID,
    user_id: UUID,
    current: UUID | None,
    limit: int,
    cursor: str | None,
) -> Page[SessionOut]:
    position = decode_cursor(cursor, _Position) if cursor else None
    before = (position.created_at, position.id) if position else None
    found = await sessions.of_user(tenant_id, user_id, limit=limit + 1, before=before)
    more, found = len(found) > limit, found[:limit]
    last = _Position(found[-1].created_at, found[-1].id) if more else None
    return Page(
        items=[_out(session, current) for session in found],
        next_cursor=encode_cursor(last) if last else None,
    )


def _out(session: Session, current: UUID | None) -> SessionOut:
    return SessionOut(
        id=session.id,
        created_at=session.created_at,
        last_seen_at=session.last_seen_at,
        address=session.client.address,
        user_agent=session.client.user_agent,
        methods=list(session.proofs),
        current=session.id == current,
    )
