"""What ingest does by the clock."""

from datetime import timedelta

import structlog
from prometheus_client import Gauge

from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.idempotency import trim_idempotency_keys
from libs.common.db.inbox import trim_inbox
from services.ingest.store.landing import Landing
from services.ingest.store.mqtt_sessions import trim_mqtt_sessions
from services.ingest.store.tenants import forget_deleted

log = structlog.get_logger(__name__)


async def keep_house(
    landing: Landing,
    engine: Database,
    clock: Clock,
    inbox_kept: timedelta,
    keys_kept: timedelta,
    strays: Gauge,
) -> None:
    """Make partitions ahead, count the points that fell beside them, forget what is long over."""
    await landing.make_days_ahead(clock.now().date())
    count = await landing.count_strays()
    strays.set(count)
    if count:
        log.error("points lie in no day's partition", count=count)
    await trim_inbox(engine, "ingest", inbox_kept)
    await trim_idempotency_keys(engine, "ingest", keys_kept)
    await trim_mqtt_sessions(engine)
    # As long as an event may come again, so may one that would have let its devices in.
    await forget_deleted(engine, inbox_kept)
