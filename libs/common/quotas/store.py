"""A tenant's quotas as one service knows them, and the check within the transaction that counts.

    await store.quotas.take_turn(Resource.RULES)      # nobody else adds one until the commit
    await store.quotas.check(Resource.RULES, await store.rules.count() + 1)

The table is made by `libs.common.db.ddl.create_quotas`, and kept by a handler of `tenant.quotas_set`:

    @subscriptions.on(TenantQuotasSet)
    async def on_quotas_set(event: TenantQuotasSet, store: RulesStore) -> None:
        await store.quotas.note(event)
"""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import QuotaExceeded, QuotaSpent
from libs.common.events.tenancy import TenantQuotasSet
from libs.common.quotas.terms import MEANING, UNLIMITED, Resource, Terms, next_day

IN_ADVANCE = 100
"""The part of a daily quota that a process is handed at once."""

_KNOWN = frozenset(str(resource) for resource in Resource)


@dataclass(frozen=True, slots=True)
class Lease:
    """How much was handed out of a quota; None: there is none, any amount may be used."""

    amount: int | None
    most: int | None


class Quotas:
    """The quotas of one tenant, in the table of the service that owns the schema."""

    def __init__(self, session: AsyncSession, tenant_id: UUID, schema: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._schema = schema

    async def note(self, event: TenantQuotasSet) -> None:
        """Keep what was said, unless what is kept was said later."""
        await self._session.execute(
            text(
                f"""
                INSERT INTO {self._schema}.quotas AS q
                  (tenant_id, resource, most, warn_percent, said_at)
                SELECT :tenant, said.resource, said.most, said.warn_percent, :at
                FROM unnest(cast(:resources AS text[]), cast(:most AS bigint[]),
                            cast(:warn AS int[])) AS said(resource, most, warn_percent)
                ON CONFLICT (tenant_id, resource) DO UPDATE
                SET most = excluded.most, warn_percent = excluded.warn_percent,
                  said_at = excluded.said_at
                WHERE q.said_at <= excluded.said_at
                """  # noqa: S608 - a schema's name, from the code
            ),
            {
                "tenant": self._tenant_id,
                "at": event.at,
                "resources": list(event.quotas),
                "most": [terms.most for terms in event.quotas.values()],
                "warn": [terms.warn_percent for terms in event.quotas.values()],
            },
        )

    async def of(self, resource: Resource) -> Terms:
        """Return the terms for a resource; unlimited, if none were ever said."""
        return (await self.all()).get(resource, UNLIMITED)

    async def all(self) -> dict[Resource, Terms]:
        """Return all terms that were said."""
        rows = await self._session.execute(
            text(
                f"SELECT resource, most, warn_percent FROM {self._schema}.quotas"  # noqa: S608 - as above
                " WHERE tenant_id = :tenant"
            ),
            {"tenant": self._tenant_id},
        )
        # A newer release may have said more than this one knows.
        return {
            Resource(row.resource): Terms(row.most, row.warn_percent)
            for row in rows
            if row.resource in _KNOWN
        }

    async def take_turn(self, resource: Resource) -> None:
        """Let nobody else of the tenant add such a thing until the transaction ends."""
        await self._session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:turn, 0))"),
            {"turn": f"{self._schema}.quotas {resource} {self._tenant_id}"},
        )

    async def lease(self, resource: Resource, wanted: int, day: date) -> Lease:
        """Hand out some of what a tenant may use on a day: what is wanted, and some more in advance.

        All that is handed out on a day is never more than the quota, whoever asks at the same time.
        What a process has left when it ends is lost: a hundredth of the quota at most.
        """
        row = (
            await self._session.execute(
                text(
                    f"SELECT most, leased, leased_on FROM {self._schema}.quotas"  # noqa: S608 - as above
                    " WHERE tenant_id = :tenant AND resource = :resource FOR UPDATE"
                ),
                {"tenant": self._tenant_id, "resource": resource.value},
            )
        ).one_or_none()
        if row is None or row.most is None:
            return Lease(None, None)
        so_far = row.leased if row.leased_on == day else 0
        amount = max(0, min(max(wanted, row.most // IN_ADVANCE), row.most - so_far))
        await self._session.execute(
            text(
                f"UPDATE {self._schema}.quotas SET leased = :leased, leased_on = :day"  # noqa: S608 - as above
                " WHERE tenant_id = :tenant AND resource = :resource"
            ),
            {
                "tenant": self._tenant_id,
                "resource": resource.value,
                "leased": so_far + amount,
                "day": day,
            },
        )
        return Lease(amount, row.most)

    async def check(self, resource: Resource, wanted: int) -> None:
        """Raise QuotaExceeded if the tenant may not have so many in all. Take a turn, count, and ask."""
        most = (await self.of(resource)).most
        if most is not None and wanted > most:
            raise exceeded(resource, most, wanted)


def spent(resource: Resource, most: int | None, now: datetime) -> QuotaSpent:
    """Return the error that says that a daily quota is used up, and when there is more."""
    allowed = "no more" if most is None else f"{most}"
    return QuotaSpent(
        f"quota {resource}: the tenant's plan allows {allowed} {MEANING[resource]}, and they are used up;"
        " there are more tomorrow (UTC), or with a larger plan",
        retry_after_s=(next_day(now) - now).total_seconds(),
    )


def exceeded(resource: Resource, most: int, wanted: int) -> QuotaExceeded:
    """Return the error that names the quota, its limit, what was wanted, and what to do."""
    return QuotaExceeded(
        f"quota {resource}: the tenant's plan allows {most} {MEANING[resource]}, and this would make"
        f" {wanted}; remove some, or ask the platform's operators for a larger plan"
    )
