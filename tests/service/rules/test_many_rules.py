"""A tenant with more rules than a statement has parameters."""

import json
import time
from uuid import uuid4

from tests.service.rules.conftest import World, a_rule

MANY = 40_000
LONGEST_START_S = 30
"""On two shared cores; it takes a few seconds."""


async def test_forty_thousand_rules_are_in_force_after_a_start(stopped: World) -> None:
    tenant, device = uuid4(), uuid4()
    series = await stopped.series(tenant, device, "m-39999")
    await stopped.fetchval(
        """
        INSERT INTO rules.rules (tenant_id, id, name, type, device_id, metric, condition, severity,
          created_at, updated_at)
        SELECT $1, gen_random_uuid(), 'rule', 'threshold', $2, 'm-' || g, $3::jsonb, 'low', now(), now()
        FROM generate_series(1, $4::int) g
        """,
        tenant,
        device,
        json.dumps({"operator": "gt", "value": 90}),
        MANY,
    )
    began = time.monotonic()
    async with stopped.running():
        took = time.monotonic() - began
        await stopped.send(series, (0, 95))
        assert [event.tenant_id for event in stopped.heard] == [tenant]
    assert took < LONGEST_START_S, took


async def test_a_tenant_may_have_so_many_rules_and_another_as_many_again(stopped: World) -> None:
    stopped.settings = stopped.settings.model_copy(update={"per_tenant": 2})
    tenant, device = uuid4(), uuid4()
    async with stopped.running():
        rules = [await stopped.create(tenant, device) for _ in range(2)]
        refused = await stopped.call(tenant, "POST", "", a_rule(device))
        assert (refused.status_code, refused.json()["detail"]) == (
            409,
            "a tenant has 2 rules at most",
        )
        await stopped.create(uuid4(), device)
        assert (await stopped.call(tenant, "DELETE", f"/{rules[0]}")).status_code == 204
        await stopped.create(tenant, device)
