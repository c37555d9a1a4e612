"""What the gateway itself does with tenants: one may change from one's own to another."""

from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from libs.common.errors import Forbidden, Invalid, Unauthenticated, Unavailable
from libs.common.http.problems import problems
from services.gateway.api.browser import from_own_page
from services.gateway.api.deps import AllSessions, IsLoggedIn
from services.gateway.api.entering import (
    SECOND_STEP,
    ClientOf,
    Entering,
    TokensOut,
    check_entering,
    entered,
)

router = APIRouter(prefix="/api/v1/tenants", tags=["auth"], dependencies=[Depends(from_own_page)])


@router.post(
    "/{tenant_id}/switch",
    responses=problems(Unauthenticated, Forbidden, Invalid, Unavailable) | SECOND_STEP,
    response_model=TokensOut,
    response_model_exclude_none=True,
    max_body_size=8192,
)
async def switch_to_tenant(
    tenant_id: UUID,
    caller: IsLoggedIn,
    sessions: AllSessions,
    client: ClientOf,
    request: Request,
    response: Response,
    body: Entering | None = None,
) -> TokensOut | JSONResponse:
    """Enter another tenant of yours, as `POST /api/v1/auth/switch` does.

    The present session goes on until it is logged out. If that tenant asks for more than you proved
    at the login, you get 202, as at a login.
    """
    body = body or Entering()
    check_entering(body, request)
    outcome = await sessions.switch(caller.access, tenant_id, client)
    return entered(outcome, request, response, cookie=body.cookie)
