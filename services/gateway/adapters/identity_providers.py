"""Asking tenancy to let somebody in by their tenant's identity provider."""

from collections.abc import Mapping
from uuid import UUID

import msgspec

from services.gateway.adapters.tenancy import Tenancy


class Offered(msgspec.Struct, frozen=True):
    """A way to log in to a tenant: a button."""

    tenant_id: UUID
    id: UUID
    name: str
    kind: str
    """`oidc` and `saml`: the browser goes there. `ldap`: name and password are asked for here."""


class Door(msgspec.Struct, frozen=True):
    """Where providers send browsers back to, and what we are called there."""

    oidc_redirect_uri: str
    saml_consumer_url: str
    saml_entity_id: str


class Entered(msgspec.Struct, frozen=True):
    """Who came in where, and the address within the console that they wanted."""

    user_id: UUID
    tenant_id: UUID
    return_to: str


class _Begun(msgspec.Struct):
    address: str


class IdentityProviders:
    """The part of tenancy's API that is about single sign-on. All raise Unavailable."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def offered(self, tenant: str) -> list[Offered]:
        """Return the ways to log in to the tenant of that name; none if there is no such tenant."""
        return await self._tenancy.ask("sign-on/offered", {"tenant": tenant}, list[Offered])

    async def begin(self, provider: Offered, door: Door, *, browser: str, return_to: str) -> str:
        """Return where to send the browser. Raises NotFound, Conflict."""
        begun = await self._tenancy.ask(
            "sign-on/begin",
            {
                "tenant_id": str(provider.tenant_id),
                "provider_id": str(provider.id),
                "door": msgspec.to_builtins(door),
                "browser": browser,
                "return_to": return_to,
            },
            _Begun,
        )
        return begun.address

    async def return_by_oidc(self, answer: Mapping[str, str], *, browser: str) -> Entered:
        """Let somebody in by what the browser brought back. Raises Unauthenticated."""
        body = {"answer": dict(answer), "browser": browser}
        return await self._tenancy.ask("sign-on/return/oidc", body, Entered)

    async def return_by_saml(self, response: str, state: str, *, browser: str) -> Entered:
        """Let somebody in by what the browser brought back. Raises Unauthenticated."""
        body = {"response": response, "state": state, "browser": browser}
        return await self._tenancy.ask("sign-on/return/saml", body, Entered)

    async def log_in(self, directory: Offered, login: str, password: str) -> Entered:
        """Let somebody in who proves their password to a directory. Raises Unauthenticated."""
        body = {
            "tenant_id": str(directory.tenant_id),
            "provider_id": str(directory.id),
            "login": login,
            "password": password,
        }
        return await self._tenancy.ask("sign-on/directory", body, Entered)
