"""Which groups each device is in, as ingest says it, for services that keep what devices' rows belong to.

Callers may be limited to groups of devices. Row-level policies see to that (`limit_to_reach` in
`libs.common.db.ddl`) by the service's own `device_places`, which is kept here. A device nothing was
said of lies in nobody's reach but theirs who have no limit.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.bus.subscriptions import Subscriptions
from libs.common.db.acting import is_limited
from libs.common.db.transactions import Store
from libs.common.errors import NotFound
from libs.common.events.ingest import DevicesPlaced

S = TypeVar("S", bound=Store)


async def _note_places(store: Store, schema: str, event: DevicesPlaced) -> None:
    for place in event.places:
        await store.session.execute(
            text(
                f"INSERT INTO {schema}.device_places AS p (tenant_id, device_id, groups, said)"  # noqa: S608 - a schema's name, from the code
                " SELECT :tenant, device_id, cast(:groups AS uuid[]), :number"
                " FROM unnest(cast(:devices AS uuid[])) AS device_id ORDER BY device_id"
                " ON CONFLICT (tenant_id, device_id)"
                " DO UPDATE SET groups = excluded.groups, said = excluded.said"
                " WHERE p.said < excluded.said"
            ),
            {
                "tenant": store.tenant_id,
                "groups": list(place.groups),
                "number": event.number,
                "devices": list(place.device_ids),
            },
        )


def follow_places(subscriptions: Subscriptions[S], schema: str) -> None:
    """Let a service keep its `device_places`."""

    @subscriptions.on(DevicesPlaced)
    async def on_devices_placed(event: DevicesPlaced, store: S) -> None:
        """Note where the devices are, unless something newer is known."""
        await _note_places(store, schema, event)


async def check_in_reach(session: AsyncSession, tenant_id: UUID, device_id: UUID) -> None:
    """Raise NotFound if the caller is limited to groups and the device lies in none of them.

    It is the historian's record that is asked, for services that read the historian.
    """
    if not is_limited():
        return
    there = await session.scalar(
        text(
            "SELECT true FROM historian.device_places WHERE tenant_id = :tenant"
            " AND device_id = :device AND groups && sec.groups()"
        ),
        {"tenant": tenant_id, "device": device_id},
    )
    if there is None:
        raise NotFound(f"no device {device_id}")


@asynccontextmanager
async def whole_tenant(session: AsyncSession) -> AsyncIterator[None]:
    """Let the statements within see all of the tenant's devices, for a caller limited to some too.

    For what must count or compare with all of them (a quota, a name that is taken): nothing of what
    is read within may reach the caller.
    """
    groups = await session.scalar(text("SELECT current_setting('app.groups', true)"))
    if not groups:
        yield
        return
    setting = text("SELECT set_config('app.groups', :groups, true)")
    await session.execute(setting, {"groups": ""})
    yield
    # Not if it fails: then the transaction is over, and the setting with it.
    await session.execute(setting, {"groups": groups})
