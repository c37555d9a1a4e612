"""A route's permission, as a parameter that everyone can read."""

from typing import Annotated

from fastapi import Depends, Request
from structlog.contextvars import bind_contextvars

from libs.common.auth.principal import HEADER, Principal
from libs.common.errors import Forbidden, Unauthenticated


async def principal(request: Request) -> Principal:
    """Return who is asking. Raises Unauthenticated if nobody vouches for the request."""
    token = request.headers.get(HEADER)
    if not token:
        raise Unauthenticated("no credential was given")
    verified: Principal = await request.app.state.verifier.verify(token)
    # Reset by the doorway when the request is over.
    bind_contextvars(tenant=str(verified.tenant_id))
    return verified


class Permission:
    """A dependency that lets those pass who hold a permission, and hands on who it was.

    `CanRead = Annotated[Principal, Depends(Permission("devices:read"))]`
    """

    def __init__(self, permission: str) -> None:
        resource, _, action = permission.partition(":")
        if not resource or not action or "*" in permission:
            raise ValueError(f"a permission reads <resource>:<action>, not {permission!r}")
        self.permission = permission

    async def __call__(self, who: Annotated[Principal, Depends(principal)]) -> Principal:
        """Return the caller. Raises Forbidden if the permission is missing."""
        if not who.may(self.permission):
            raise Forbidden(f"this needs the permission {self.permission}")
        return who


class PlatformAdmin:
    """A dependency that lets the installation's own admins pass, who stand apart from any tenant."""

    permission = "platform:admin"

    async def __call__(self, who: Annotated[Principal, Depends(principal)]) -> Principal:
        """Return the caller. Raises Forbidden for everyone else."""
        if not who.platform_admin:
            raise Forbidden("this is for the platform's own administrators")
        return who
