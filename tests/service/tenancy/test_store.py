"""The repositories keep to their tenant even where the database would let them see more."""

from uuid import UUID

import pytest

from libs.common.clock import SystemClock
from libs.common.db.engine import Database, bound_to
from libs.common.errors import NotFound
from services.tenancy.domain.invitation import hash_token
from services.tenancy.store.store import TenancyStore
from tests.service.tenancy.conftest import World


async def test_a_transaction_for_two_tenants_does_not_mix_them(world: World) -> None:
    mine, theirs = await world.plant(), await world.plant()
    stranger = await world.add_user(theirs, f"ann@{theirs.slug}.example")
    guest = await world.invite(theirs, f"ben@{theirs.slug}.example")
    now = SystemClock().now()
    body = {"name": "night-shift", "permissions": ["alerts:*"]}
    await world.http.post("/api/v1/roles", json=body, headers=theirs.headers)
    database = Database(world.urls.rw("tenancy"), pool_size=1)
    try:
        with bound_to((mine.id, theirs.id)):
            async with database.session() as session:
                store = TenancyStore(session, mine.id)
                assert [m.email for m in await store.members.page(10, None)] == [mine.admin_email]
                assert len(await store.members.ids()) == 1
                assert not await store.members.has_administrator(besides=await boss(world, mine.id))
                assert await store.members.with_email(stranger["email"]) is None
                guest_hash = hash_token(guest["invitation"]["token"])
                assert await store.invitations.take(guest_hash, now) is None
                assert not await store.roles.all()
                assert not await store.roles.named(["night-shift"])
                for missing in (
                    store.tenants.get(theirs.id),
                    store.members.get(UUID(stranger["id"])),
                    store.members.remove(UUID(stranger["id"])),
                    store.roles.get("night-shift"),
                    store.roles.remove("night-shift"),
                ):
                    with pytest.raises(NotFound):
                        await missing
    finally:
        await database.close()


async def boss(world: World, tenant_id: UUID) -> UUID:
    """The id of a tenant's only user."""
    [row] = await world.query(
        "SELECT user_id FROM tenancy.memberships WHERE tenant_id = $1", tenant_id
    )
    user_id: UUID = row["user_id"]
    return user_id
