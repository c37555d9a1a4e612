"""One tenant's policies of rate limits; the installation's are those of the tenant of zeros."""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.gateway.domain.policy import CallerKind, Match, Per, Policy
from services.gateway.store.tables import RateLimitPolicyRow


class RateLimitPolicies:
    """The policies of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def all(self) -> list[Policy]:
        """Return the policies by name; there are few, so nobody pages through them."""
        query = (
            select(RateLimitPolicyRow)
            .where(RateLimitPolicyRow.tenant_id == self._tenant_id)
            .order_by(RateLimitPolicyRow.name)
        )
        return [_of_row(row) for row in await self._session.scalars(query)]

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(RateLimitPolicyRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, policy_id: UUID) -> Policy:
        """Return a policy, locked until the transaction ends. Raises NotFound."""
        return _of_row(await self._row(policy_id))

    async def add(self, policy: Policy, at: datetime) -> None:
        """Add a policy. Raises Conflict if there is one of that name."""
        row = RateLimitPolicyRow(tenant_id=self._tenant_id, id=policy.id, version=1)
        _fill(row, policy, at)
        self._session.add(row)
        await self._flush(policy)

    async def update(self, policy: Policy, at: datetime) -> None:
        """Replace a policy. Raises NotFound, or Conflict if its new name is taken."""
        row = await self._row(policy.id)
        row.version += 1
        _fill(row, policy, at)
        await self._flush(policy)

    async def remove(self, policy_id: UUID) -> None:
        """Remove a policy. Raises NotFound."""
        await self._session.delete(await self._row(policy_id))
        await self._session.flush()

    async def remove_all(self) -> None:
        """Remove all policies of the tenant."""
        await self._session.execute(
            delete(RateLimitPolicyRow).where(RateLimitPolicyRow.tenant_id == self._tenant_id)
        )

    async def _row(self, policy_id: UUID) -> RateLimitPolicyRow:
        query = (
            select(RateLimitPolicyRow)
            .where(
                RateLimitPolicyRow.tenant_id == self._tenant_id, RateLimitPolicyRow.id == policy_id
            )
            .with_for_update()
        )
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no rate limit {policy_id}")
        return row

    async def _flush(self, policy: Policy) -> None:
        try:
            async with self._session.begin_nested():
                await self._session.flush()
        except IntegrityError as error:
            if "rate_limit_policies_name" in str(error.orig):
                raise Conflict(f"there is a rate limit {policy.name!r} already") from error
            raise


def to_policy(row: Mapping[str, Any]) -> Policy:
    """Return the policy that a row of the table holds."""
    match: dict[str, Any] = row["match"]
    return Policy(
        id=row["id"],
        tenant_id=row["tenant_id"],
        by_platform=row["by_platform"],
        name=row["name"],
        match=Match(
            path=match.get("path"),
            methods=frozenset(match.get("methods", ())),
            role=match.get("role"),
            plan=match.get("plan"),
            kind=CallerKind(match["kind"]) if "kind" in match else None,
            subject=UUID(match["subject"]) if "subject" in match else None,
            networks=tuple(ip_network(network) for network in match.get("networks", ())),
        ),
        requests=row["requests"],
        per=Per(row["per"]),
        burst=row["burst"],
        cost=row["cost"],
        version=row["version"],
        updated_at=row["updated_at"],
    )


def _of_row(row: RateLimitPolicyRow) -> Policy:
    return to_policy({column.key: getattr(row, column.key) for column in row.__table__.columns})


def _fill(row: RateLimitPolicyRow, policy: Policy, at: datetime) -> None:
    row.name = policy.name
    row.by_platform = policy.by_platform
    row.match = _match(policy.match)
    row.requests = policy.requests
    row.per = policy.per.value
    row.burst = policy.burst
    row.cost = policy.cost
    row.updated_at = at


def _match(match: Match) -> dict[str, Any]:
    """Return what is said of it; what is left out is left out here too."""
    said = {
        "path": match.path,
        "methods": sorted(match.methods),
        "role": match.role,
        "plan": match.plan,
        "kind": match.kind.value if match.kind else None,
        "subject": str(match.subject) if match.subject else None,
        "networks": [str(network) for network in match.networks],
    }
    return {name: value for name, value in said.items() if value}
