"""Other sites whose scripts may use the API: of the installation, and of each tenant."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from uuid import UUID

from libs.common.errors import Invalid
from libs.common.events.gateway import CorsOriginsChanged
from services.gateway.domain.origin import parse_origin
from services.gateway.store.store import GatewayStore

MOST = 50
"""Origins of a tenant."""


class Origins:
    """The origins that this process knows. Those of the installation are every tenant's."""

    def __init__(self, installation: Collection[str]) -> None:
        self._installation = frozenset(installation)
        self._by_tenant: dict[UUID, frozenset[str]] = {}
        self._all = self._installation

    def set(self, origins: Iterable[tuple[UUID, str]]) -> None:
        """Let these be the tenants' origins from now on."""
        by_tenant: dict[UUID, set[str]] = {}
        for tenant_id, origin in origins:
            by_tenant.setdefault(tenant_id, set()).add(origin)
        self._by_tenant = {tenant: frozenset(found) for tenant, found in by_tenant.items()}
        self._all = self._installation.union(*self._by_tenant.values())

    def may_ask(self, origin: str, tenant_id: UUID | None) -> bool:
        """Whether a site's scripts may see what a tenant's user gets.

        Before it is known who asks (None), any tenant's may: a preflight has no credential, and
        an answer to nobody holds nobody's data.
        """
        if tenant_id is None:
            return origin in self._all
        return origin in self._installation or origin in self._by_tenant.get(tenant_id, ())


async def replace(store: GatewayStore, origins: Sequence[str], *, at: datetime) -> list[str]:
    """Let these be the tenant's origins; return them as they are kept. Raises Invalid."""
    kept = sorted({parse_origin(text, f"#/origins/{n}") for n, text in enumerate(origins)})
    if len(kept) > MOST:
        raise Invalid(f"a tenant has at most {MOST} origins")
    await store.cors_origins.replace(kept, at)
    store.emit(CorsOriginsChanged(tenant_id=store.tenant_id, at=at))
    return kept
