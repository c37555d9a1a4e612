"""What is said of a certificate's time, and when."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from libs.common.clock import SystemClock
from services.ingest.domain.connector import State
from services.ingest.protocols.opcua import client
from services.ingest.protocols.opcua.certificates import VALID, new_identity, time_fault
from services.ingest.protocols.opcua.client import Reader
from services.ingest.protocols.opcua.connection import SERVER_CERTIFICATE
from tests.unit.ingest.opcua.server import a_connector
from tests.waiting import until

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDS = MADE + VALID
CERTIFICATE = new_identity(MADE).certificate


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (MADE - timedelta(hours=2), "not valid before 2026-03-01"),
        (MADE, None),
        (ENDS - timedelta(days=14, seconds=1), None),
        (ENDS - timedelta(days=14), f"expires on {ENDS:%Y-%m-%d}"),
        (ENDS, f"expires on {ENDS:%Y-%m-%d}"),
        (ENDS + timedelta(seconds=1), f"expired on {ENDS:%Y-%m-%d}"),
    ],
)
def test_a_certificate_s_time_is_told_two_weeks_before_it_ends(
    now: datetime, fault: str | None
) -> None:
    assert time_fault(CERTIFICATE, now) == fault


async def test_that_a_certificate_ends_is_told_while_the_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "CERTIFICATES_LOOKED_AT_S", 0.001)
    reports: list[tuple[State, str]] = []

    def is_told(*told: object) -> bool:
        return reports[-1] == told

    clock = SystemClock()
    reader = Reader(
        a_connector(),
        cast(Any, SimpleNamespace(clock=clock)),
        lambda state, reason: reports.append((state, reason)),
        None,
        None,
    )
    reader._health.connected()
    watching = asyncio.create_task(reader._watch_certificates({SERVER_CERTIFICATE: CERTIFICATE}))
    try:
        for at, state, reason in (
            (ENDS - timedelta(days=1), State.DEGRADED, f"expires on {ENDS:%Y-%m-%d}"),
            (ENDS + timedelta(days=1), State.DEGRADED, f"expired on {ENDS:%Y-%m-%d}"),
            # A clock that was set back.
            (MADE, State.CONNECTED, ""),
        ):
            clock.offset = at - datetime.now(UTC)
            told = (state, f"{SERVER_CERTIFICATE}: {reason}" if reason else "")
            await until(partial(is_told, *told), f"it is told: {told}")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
