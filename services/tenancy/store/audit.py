"""The trail as tables: added to, and read."""

from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from libs.common.errors import NotFound
from services.tenancy.domain.audit import Entry, Head, Link, Verdict, Verification, Wanted

AT_ONCE = 1_000
"""Entries that are read, and verified, with one statement."""

Asked = AsyncSession | AsyncConnection

_TYPES = {
    "seq": "bigint",
    "at": "timestamptz",
    **dict.fromkeys(("actor_id", "session_id"), "uuid"),
    **dict.fromkeys(("before", "after", "detail"), "jsonb"),
}
_JSON = ("before", "after", "detail")
_NAMES = tuple(field.name for field in fields(Entry))
_COLUMNS = ", ".join(_NAMES)
_READ = (
    ", ".join(f"cast({name} AS text) AS {name}" if name in _JSON else name for name in _NAMES)
    + ", prev_hash, hash"
)
_HEAD = "SELECT seq, hash, first_seq, first_prev_hash FROM tenancy.audit_heads"


class Trail:
    """The trail of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._head: Head | None = None
        """Where the trail ends, once this transaction has locked it."""

    async def head(self) -> Head | None:
        """Return where the trail ends, locked until the transaction ends; None: there is no such tenant.

        The tenant is locked first, as by who removes it: the trail goes with it.
        """
        if self._head is None:
            tenant = {"tenant": self._tenant_id}
            of_tenant = "FROM tenancy.tenants WHERE tenant_id = :tenant"
            there = text(f"SELECT 1 {of_tenant} FOR KEY SHARE")
            if (await self._session.execute(there, tenant)).one_or_none() is None:
                return None
            begin = text(
                f"INSERT INTO tenancy.audit_heads SELECT tenant_id, 0, :hash, 1, :hash {of_tenant}"
                " ON CONFLICT DO NOTHING"
            )
            await self._session.execute(begin, {**tenant, "hash": Head().hash})
            locked = text(f"{_HEAD} WHERE tenant_id = :tenant FOR UPDATE")
            self._head = Head(*(await self._session.execute(locked, tenant)).one())
        return self._head

    async def append(self, links: Sequence[Link]) -> None:
        """Add links to the end, which is locked."""
        columns = list(zip(*(astuple(link.entry) for link in links), strict=True))
        values: dict[str, Any] = {}
        for name, column in zip(_NAMES, columns, strict=True):
            values[name] = (
                [None if value is None else msgspec.json.encode(value).decode() for value in column]
                if name in _JSON
                else list(column)
            )
        arrays = ", ".join(
            f"cast(:{name} AS {'text' if name in _JSON else _TYPES.get(name, 'text')}[])"
            for name in _NAMES
        )
        chosen = ", ".join(f"cast({name} AS jsonb)" if name in _JSON else name for name in _NAMES)
        await self._session.execute(
            text(
                f"INSERT INTO tenancy.audit_log (tenant_id, {_COLUMNS}, prev_hash, hash)"  # noqa: S608 - names from the code
                f" SELECT :tenant, {chosen}, prev_hash, hash"
                f" FROM unnest({arrays}, cast(:prev_hash AS bytea[]), cast(:hash AS bytea[]))"
                f" AS entries ({_COLUMNS}, prev_hash, hash)"
            ),
            {
                "tenant": self._tenant_id,
                **values,
                "prev_hash": [link.prev_hash for link in links],
                "hash": [link.hash for link in links],
            },
        )
        await self._session.execute(
            text(
                "UPDATE tenancy.audit_heads SET seq = :seq, hash = :hash WHERE tenant_id = :tenant"
            ),
            {"tenant": self._tenant_id, "seq": links[-1].entry.seq, "hash": links[-1].hash},
        )
        if self._head is not None:
            self._head = replace(self._head, seq=links[-1].entry.seq, hash=links[-1].hash)

    async def get(self, seq: int) -> Link:
        """Return an entry. Raises NotFound."""
        found = await self._session.execute(
            text(
                f"SELECT {_READ} FROM tenancy.audit_log WHERE tenant_id = :tenant AND seq = :seq"  # noqa: S608 - names from the code
            ),
            {"tenant": self._tenant_id, "seq": seq},
        )
        row = found.one_or_none()
        if row is None:
            raise NotFound(f"no entry {seq}")
        return _to_link(row)

    async def find(self, wanted: Wanted, limit: int, before: int | None) -> list[Link]:
        """Return up to `limit` entries, newest first, before the given one."""
        conditions, values = _conditions(wanted)
        if before is not None:
            conditions.append("seq < :below")
        rows = await self._session.execute(
            text(
                f"SELECT {_READ} FROM tenancy.audit_log"  # noqa: S608 - names and conditions from the code
                f" WHERE {' AND '.join(['tenant_id = :tenant', *conditions])}"
                " ORDER BY seq DESC LIMIT :limit"
            ),
            {"tenant": self._tenant_id, "limit": limit, "below": before, **values},
        )
        return [_to_link(row) for row in rows]

    async def verify(self) -> Verdict:
        """Look at the whole trail, in bounded memory."""
        return await verify(self._session, self._tenant_id)


def _conditions(wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    for name in ("actor_id", "resource", "resource_id", "outcome", "request_id", "service"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = :{name}")
            values[name] = value
    if wanted.since is not None:
        conditions.append("at >= :since")
        values["since"] = wanted.since
    if wanted.until is not None:
        conditions.append("at < :until")
        values["until"] = wanted.until
    if wanted.action is not None:
        is_prefix = wanted.action.endswith(".")
        conditions.append("starts_with(action, :action)" if is_prefix else "action = :action")
        values["action"] = wanted.action
    return conditions, values


async def verify(asked: Asked, tenant_id: UUID) -> Verdict:
    """Look at a tenant's whole trail, in bounded memory; what is added meanwhile is not looked at."""
    tenant = {"tenant": tenant_id}
    found = (await asked.execute(text(f"{_HEAD} WHERE tenant_id = :tenant"), tenant)).one_or_none()
    head = Head() if found is None else Head(*found)
    verification = Verification(tenant_id, head)
    page = text(
        f"SELECT {_READ} FROM tenancy.audit_log"  # noqa: S608 - names from the code
        " WHERE tenant_id = :tenant AND seq > :after AND seq <= :last ORDER BY seq LIMIT :limit"
    )
    after = head.first_seq - 1
    while not verification.is_broken:
        rows = (
            await asked.execute(
                page, {**tenant, "after": after, "last": head.seq, "limit": AT_ONCE}
            )
        ).all()
        if not rows:
            break
        verification.look_at(_to_link(row) for row in rows)
        after = rows[-1].seq
    # Head and end as one statement sees them: others may add to both meanwhile.
    beyond = await asked.execute(
        text(
            "SELECT coalesce(max(l.seq), 0) FROM tenancy.audit_log AS l"
            " LEFT JOIN tenancy.audit_heads AS h ON h.tenant_id = l.tenant_id"
            " WHERE l.tenant_id = :tenant AND l.seq > coalesce(h.seq, 0)"
        ),
        tenant,
    )
    return verification.verdict(last=beyond.scalar_one())


def _to_link(row: Row[Any]) -> Link:
    values = row._asdict()
    for name in _JSON:
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name])
    return Link(Entry(**{name: values[name] for name in _NAMES}), row.prev_hash, row.hash)
