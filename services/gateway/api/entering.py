"""What every way in answers: tokens, or what is still missing."""

from typing import Annotated, Literal

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, SecretStr

from libs.common.http.schemas import Body, Out
from services.gateway.api.browser import check_cookie_possible, put_cookie
from services.gateway.domain.limit import Standing
from services.gateway.domain.login import LONGEST_USER_AGENT, Client, SecondStep
from services.gateway.usecases.sessions import Sessions, Tokens

PendingToken = Annotated[SecretStr, Field(min_length=1, max_length=256, description="The `mfa_token` of the first step.", examples=["iiotm_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])]  # fmt: skip


class Entering(Body):
    """What every way in takes."""

    cookie: Annotated[bool, Field(description="For browsers: the refresh token is put into a cookie that no script reads, and left out of the answer.", examples=[False])] = False  # fmt: skip


class TokensOut(Out):
    """Both tokens. The refresh token is good for one use; it gives the next pair."""

    access_token: Annotated[
        str, Field(examples=["eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiI1ZjBjIn0.c2lnbmF0dXJl"])
    ]
    refresh_token: Annotated[str | None, Field(description="Left out if it was put into a cookie.", examples=["iiotr_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])] = None  # fmt: skip
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the name of a type
    expires_in: Annotated[
        int, Field(description="Seconds until the access token expires.", examples=[900])
    ]


class SecondStepOut(Out):
    """A login that goes on: show a second factor, or set one up."""

    mfa_token: Annotated[str, Field(description="What the next step is asked for with; good for five attempts.", examples=["iiotm_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])]  # fmt: skip
    factors: Annotated[list[str], Field(description="What may be shown: at `/auth/login/totp`, `/passkey` or `/recovery`.", examples=[["totp", "recovery"]])]  # fmt: skip
    enrol: Annotated[bool, Field(description="The tenant asks for a second factor and you have none: set one up at `/auth/login/enrol/…`.", examples=[False])]  # fmt: skip
    expires_in: Annotated[
        int, Field(description="Seconds until the login must begin again.", examples=[300])
    ]


SECOND_STEP: dict[int | str, dict[str, object]] = {
    202: {
        "model": SecondStepOut,
        "description": "Not in yet: a second factor is to be shown, or set up",
    }
}
"""The `responses=` of a way in that may need another step."""


def client_of(request: Request) -> Client:
    """Return from where a request comes."""
    user_agent = request.headers.get("user-agent", "")[:LONGEST_USER_AGENT]
    # PostgreSQL keeps no NUL, and a header may hold any other byte.
    return Client(request.state.address, user_agent.replace("\x00", ""))


ClientOf = Annotated[Client, Depends(client_of)]
"""From where the request comes."""


def check_entering(body: Entering, request: Request) -> None:
    """Refuse a cookie where there can be none, before anything is done. Raises Forbidden, Invalid."""
    if body.cookie:
        check_cookie_possible(request)


def entered(
    outcome: Tokens | SecondStep, request: Request, response: Response, *, cookie: bool
) -> TokensOut | JSONResponse:
    """Return the answer to somebody who wants to enter."""
    if isinstance(outcome, SecondStep):
        step = SecondStepOut(
            mfa_token=outcome.token,
            factors=list(outcome.factors),
            enrol=outcome.enrols,
            expires_in=outcome.expires_in,
        )
        # Where one stands against limits is told here as well.
        return JSONResponse(step.model_dump(), 202, headers=dict(response.headers))
    return tokens_out(outcome, request, response, cookie=cookie)


def tokens_out(tokens: Tokens, request: Request, response: Response, *, cookie: bool) -> TokensOut:
    """Return the tokens, the refresh token in a cookie if that is wanted."""
    if cookie:
        sessions: Sessions = request.app.state.sessions
        put_cookie(response, tokens.refresh_token, sessions.lifetimes.refresh)
    return TokensOut(
        access_token=tokens.access_token,
        refresh_token=None if cookie else tokens.refresh_token,
        expires_in=tokens.expires_in,
    )


def tell_standing(response: Response, standing: Standing) -> None:
    """Tell in the headers where somebody stands against the limit of attempts."""
    for name, value in standing.headers():
        response.headers[name.decode()] = value.decode()
