"""What crosses tenants by name: claiming what is due, and forgetting what is long over."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text

from libs.common.db.engine import Database
from services.alerting.store.notifications import Claim

_CLAIM = text(
    """
    WITH RECURSIVE waiting AS (
      -- The channels that something waits for, one step in the index each: a channel that is down
      -- for a day has thousands waiting, and they must not be read again and again.
      (SELECT tenant_id, channel_id FROM alerting.notifications
       WHERE status IN ('pending', 'sending')
       ORDER BY tenant_id, channel_id LIMIT 1)
      UNION ALL
      SELECT n.tenant_id, n.channel_id FROM waiting w CROSS JOIN LATERAL (
        SELECT tenant_id, channel_id FROM alerting.notifications
        WHERE status IN ('pending', 'sending')
          AND (tenant_id, channel_id) > (w.tenant_id, w.channel_id)
        ORDER BY tenant_id, channel_id LIMIT 1) n
    ), due AS (
      SELECT n.tenant_id, n.id FROM waiting w CROSS JOIN LATERAL (
        SELECT m.tenant_id, m.id, m.due_at FROM alerting.notifications m
        WHERE m.status IN ('pending', 'sending')
          AND m.tenant_id = w.tenant_id AND m.channel_id = w.channel_id
          AND m.due_at <= (SELECT sec.iiot_now())
          -- What is told of an alert is told in its order.
          AND NOT EXISTS (
            SELECT FROM alerting.notifications earlier
            WHERE earlier.tenant_id = m.tenant_id AND earlier.alert_id = m.alert_id
              AND earlier.channel_id = m.channel_id AND earlier.seq < m.seq
              AND earlier.status IN ('pending', 'sending'))
        ORDER BY m.due_at
        LIMIT coalesce(
          (SELECT r.room FROM unnest(cast(:channels AS uuid[]), cast(:rooms AS int[]))
             AS r(channel_id, room) WHERE r.channel_id = w.channel_id), :per_channel)
        FOR UPDATE SKIP LOCKED) n
      ORDER BY n.due_at
      LIMIT :at_once
    )
    UPDATE alerting.notifications n
    SET status = 'sending', attempts = n.attempts + 1, lease_token = gen_random_uuid(),
        due_at = (SELECT sec.iiot_now()) + :lease
    FROM due WHERE n.tenant_id = due.tenant_id AND n.id = due.id
    RETURNING n.tenant_id, n.id, n.channel_id, n.lease_token
    """
)

_FORGET = text(
    "DELETE FROM alerting.firings"
    " WHERE cleared_at < (SELECT sec.iiot_now()) - cast(:kept AS interval)"
    " AND (triggered_at IS NULL OR triggered_at < (SELECT sec.iiot_now()) - cast(:kept AS interval))"
)


class DueNotifications:
    """The notifications of all tenants that are due, by PostgreSQL's time."""

    def __init__(self, engine: Database, lease: timedelta) -> None:
        self._engine = engine
        self._lease = lease

    async def claim(self, at_once: int, per_channel: int, rooms: Mapping[UUID, int]) -> list[Claim]:
        """Claim up to `at_once` for as long as the lease lasts, those due longest first.

        Of one channel's at most `per_channel`, or what `rooms` has for it. A claim whose lease
        ended unrecorded is due again, under the same id.
        """
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                _CLAIM,
                {
                    "at_once": at_once,
                    "per_channel": per_channel,
                    "channels": list(rooms),
                    "rooms": list(rooms.values()),
                    "lease": self._lease,
                },
            )
            return [Claim(*row) for row in rows]

    async def forget_firings(self, kept: timedelta) -> int:
        """Forget the firings that ended longer ago than `kept`; return how many those were."""
        async with self._engine.connection() as connection:
            result = await connection.execute(_FORGET, {"kept": kept})
        return result.rowcount
