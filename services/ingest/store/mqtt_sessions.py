"""The sessions of MQTT devices that outlive their connection, of all tenants at once.

A session belongs to the process that took it last. What another one still writes of it is lost on
purpose: it knows less.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Joint, JointTransactions

_LOOK = text(
    """
    SELECT holder, state, holder IS NOT NULL OR expires_at > (SELECT sec.iiot_now()) AS is_alive
    FROM ingest.mqtt_sessions WHERE tenant_id = :tenant AND device_id = :device FOR UPDATE
    """
)

_TAKE = text(
    """
    INSERT INTO ingest.mqtt_sessions AS s (tenant_id, device_id, holder, taken_at, expires_at, state)
    SELECT d.tenant_id, d.id, :holder, clock.now, clock.now + cast(:expiry AS interval), :state
    FROM ingest.devices d, (SELECT sec.iiot_now()) AS clock(now)
    WHERE d.tenant_id = :tenant AND d.id = :device
    ON CONFLICT (tenant_id, device_id) DO UPDATE SET holder = excluded.holder,
      taken_at = excluded.taken_at, expires_at = excluded.expires_at, state = excluded.state
    """
)

_SAVE = text(
    """
    UPDATE ingest.mqtt_sessions s
    SET state = w.state, expires_at = (SELECT sec.iiot_now()) + w.expiry,
      holder = CASE WHEN w.is_over THEN NULL ELSE s.holder END
    FROM unnest(cast(:tenants AS uuid[]), cast(:devices AS uuid[]), cast(:states AS bytea[]),
                cast(:expiries AS interval[]), cast(:over AS boolean[]))
      AS w(tenant_id, device_id, state, expiry, is_over)
    WHERE s.tenant_id = w.tenant_id AND s.device_id = w.device_id AND s.holder = :holder
    """
)

_FORGET = text(
    """
    DELETE FROM ingest.mqtt_sessions s
    USING unnest(cast(:tenants AS uuid[]), cast(:devices AS uuid[]), cast(:ages AS interval[]))
      AS w(tenant_id, device_id, age)
    WHERE s.tenant_id = w.tenant_id AND s.device_id = w.device_id
      AND s.taken_at <= (SELECT sec.iiot_now()) - w.age
    """
)

# Who is connected has its session, however long ago that was taken.
_TRIM = text(
    """
    DELETE FROM ingest.mqtt_sessions s
    WHERE s.expires_at <= (SELECT sec.iiot_now()) AND NOT EXISTS (
      SELECT 1 FROM ingest.devices d
      WHERE d.tenant_id = s.tenant_id AND d.id = s.device_id AND d.endpoint_id IS NOT NULL)
    """
)


class Word(NamedTuple):
    """What becomes of a session: its new state, or, without one, nothing remains of it."""

    tenant_id: UUID
    device_id: UUID
    state: bytes | None
    expiry: timedelta
    said_at: float
    """Of `time.monotonic()`: the database's clock may differ. Sessions that were taken later are
    another matter."""
    is_over: bool


class Taken(NamedTuple):
    """What was found of a session."""

    state: bytes | None
    """None: there is none."""
    is_elsewhere: bool
    """Another process has the device's connection, or died with it; nothing was taken."""


class MqttSessions(JointTransactions[Joint]):
    """Takes sessions for a process, and writes down what becomes of them."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        super().__init__(database, outbox, Joint)

    async def take(
        self,
        tenant_id: UUID,
        device_id: UUID,
        holder: UUID,
        expiry: timedelta,
        *,
        resumes: bool,
        is_patient: bool,
        empty: bytes,
    ) -> Taken:
        """Make a device's session the holder's, as it was if it `resumes`, else as an empty one.

        One that belongs to another process stays there if the caller `is_patient`.
        """
        key = {"tenant": tenant_id, "device": device_id}
        async with self.begin([tenant_id]) as joint:
            found = (await joint.connection.execute(_LOOK, key)).one_or_none() if resumes else None
            if found is not None and is_patient and found.holder not in (None, holder):
                return Taken(None, is_elsewhere=True)
            state: bytes | None = found.state if found is not None and found.is_alive else None
            if state is not None or expiry:
                await joint.connection.execute(
                    _TAKE, {**key, "holder": holder, "expiry": expiry, "state": state or empty}
                )
            return Taken(state, is_elsewhere=False)

    async def write(self, holder: UUID, words: Sequence[Word]) -> None:
        """Write down what became of sessions: what is the holder's is saved, or forgotten."""
        saved = [word for word in words if word.state is not None]
        forgotten = [word for word in words if word.state is None]
        async with self.begin({word.tenant_id for word in words}) as joint:
            if saved:
                await joint.connection.execute(
                    _SAVE,
                    {
                        **_keys(saved),
                        "holder": holder,
                        "states": [word.state for word in saved],
                        "expiries": [word.expiry for word in saved],
                        "over": [word.is_over for word in saved],
                    },
                )
            if forgotten:
                now = time.monotonic()
                ages = [timedelta(seconds=now - word.said_at) for word in forgotten]
                await joint.connection.execute(_FORGET, {**_keys(forgotten), "ages": ages})


def _keys(words: Iterable[Word]) -> dict[str, list[UUID]]:
    some = list(words)
    return {
        "tenants": [word.tenant_id for word in some],
        "devices": [word.device_id for word in some],
    }


async def trim_mqtt_sessions(engine: Database) -> int:
    """Forget sessions whose device has been away for longer than they are kept; return how many."""
    async with engine.connection() as connection:
        return (await connection.execute(_TRIM)).rowcount
