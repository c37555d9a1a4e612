"""How many rules a tenant's plan allows."""

import asyncio
from uuid import uuid4

from tests.quotas import allow, counted
from tests.service.rules.conftest import World, a_rule


async def test_as_many_rules_as_the_plan_allows_and_not_one_more(world: World) -> None:
    tenant, other = uuid4(), uuid4()
    await allow(world.bus, world.urls, "rules", tenant, rules=2)
    answers = await asyncio.gather(
        *[world.call(tenant, "POST", "", a_rule(uuid4())) for _ in range(6)]
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [409] * 4
    refused = next(answer.json() for answer in answers if answer.status_code == 409)
    assert refused["type"] == "urn:iiot:problem:quota-exceeded"
    assert "allows 2 rules" in refused["detail"]
    assert (await world.call(other, "POST", "", a_rule(uuid4()))).status_code == 201

    made = next(answer.json()["id"] for answer in answers if answer.status_code == 201)
    assert (await world.call(tenant, "DELETE", f"/{made}")).status_code == 204
    assert (await world.call(tenant, "POST", "", a_rule(uuid4()))).status_code == 201
    assert await counted(world.urls, tenant, "rules") == [1, 2, 1, 2]
