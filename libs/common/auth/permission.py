"""A route's permission, as a parameter that everyone can read."""

from typing import Annotated

from fastapi import Depends, Request
from structlog.contextvars import bind_contextvars

from libs.common.auth.principal import HEADER, Principal
from libs.common.db.acting import Acting, act_as, actor_now
from libs.common.errors import Forbidden, Unauthenticated
from libs.common.events.audit import AuditActor, AuditEntry
from libs.common.http.problems import REQUEST_ID
from libs.common.refusals import Refusal, Refusals

CLIENT_ADDRESS = "x-iiot-client-address"
"""The header in which the gateway names the client's address; what a client says in it is thrown away."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods by which nobody asks for a change (RFC 9110, section 9.2.1)."""
USER_AGENT = 256
"""Characters that are kept of what a client says it is."""


async def principal(request: Request) -> Principal:
    """Return who is asking. Raises Unauthenticated if nobody vouches for the request."""
    token = request.headers.get(HEADER)
    if not token:
        raise Unauthenticated("no credential was given")
    verified: Principal = await request.app.state.verifier.verify(token)
    # Both are reset by the doorway when the request is over.
    bind_contextvars(tenant=str(verified.tenant_id))
    act_as(
        Acting(
            _actor(verified, request),
            verified.groups,
            verified.tenant_id,
            changes=request.method not in SAFE,
        )
    )
    return verified


def _actor(who: Principal, request: Request) -> AuditActor:
    """Return who acts, as the audit trail has it."""
    user_agent = request.headers.get("user-agent")
    return AuditActor(
        kind=who.kind,
        id=who.subject,
        session_id=who.session_id,
        request_id=request.scope.get(REQUEST_ID),
        address=request.headers.get(CLIENT_ADDRESS),
        user_agent=None if user_agent is None else user_agent[:USER_AGENT],
    )


class Permission:
    """A dependency that lets those pass who hold a permission, and hands on who it was.

    `CanRead = Annotated[Principal, Depends(Permission("devices:read"))]`

    `of_whole_tenant`: what it permits concerns all devices, and is not for callers who are limited
    to some groups of them.
    """

    def __init__(self, permission: str, *, of_whole_tenant: bool = False) -> None:
        resource, _, action = permission.partition(":")
        if not resource or not action or "*" in permission:
            raise ValueError(f"a permission reads <resource>:<action>, not {permission!r}")
        self.permission = permission
        self._of_whole_tenant = of_whole_tenant

    async def __call__(
        self, request: Request, who: Annotated[Principal, Depends(principal)]
    ) -> Principal:
        """Return the caller. Raises Forbidden if the permission is missing."""
        if not who.may(self.permission):
            _note_refusal(request, who, self.permission)
            raise Forbidden(f"this needs the permission {self.permission}")
        if self._of_whole_tenant and who.groups is not None:
            raise Forbidden("this concerns all devices, and you are limited to some device groups")
        return who


def _note_refusal(request: Request, who: Principal, permission: str) -> None:
    """Have it recorded that a permission was missing, where the service records such things."""
    refusals: Refusals | None = getattr(request.app.state, "refusals", None)
    if refusals is not None:
        entry = AuditEntry(
            action="access.denied",
            resource="permission",
            resource_id=permission,
            outcome="denied",
        )
        refusals.note(Refusal(who.tenant_id, who.subject, entry), actor_now())


class PlatformAdmin:
    """A dependency that lets the installation's own admins pass, who stand apart from any tenant."""

    permission = "platform:admin"

    async def __call__(
        self, request: Request, who: Annotated[Principal, Depends(principal)]
    ) -> Principal:
        """Return the caller. Raises Forbidden for everyone else."""
        if not who.platform_admin:
            _note_refusal(request, who, self.permission)
            raise Forbidden("this is for the platform's own administrators")
        return who
