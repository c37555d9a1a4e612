"""What the gateway's own routes ask for."""

from typing import Annotated

from fastapi import Depends, Request

from libs.common.auth.shown import shown_token
from libs.common.errors import Malformed, Unauthenticated
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.callers import Caller
from services.gateway.usecases.sessions import Sessions


def bearer_token(authorization: str | None) -> str:
    """Return the token of an Authorization header. Raises Unauthenticated."""
    token = shown_token(authorization)
    if token is None:
        raise Unauthenticated("no credential was given")
    return token


class LoggedIn:
    """Lets everyone pass who is logged in, whatever they may do otherwise."""

    permission = "session:own"

    async def __call__(self, request: Request) -> Caller:
        """Return the caller. Raises Unauthenticated."""
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise Malformed("there are two Authorization headers")
        token = bearer_token(given[0] if given else None)
        caller: Caller = await request.app.state.callers.caller(token)
        return caller


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def _accounts(request: Request) -> Accounts:
    accounts: Accounts = request.app.state.accounts
    return accounts


IsLoggedIn = Annotated[Caller, Depends(LoggedIn())]
AllSessions = Annotated[Sessions, Depends(_sessions)]
AllAccounts = Annotated[Accounts, Depends(_accounts)]
