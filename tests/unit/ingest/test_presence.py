"""What is known of a device's being there, whatever the order in which it is told."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from services.ingest.domain.device import Status
from services.ingest.domain.presence import Noted, Seen, after

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
TENANT, DEVICE = uuid4(), uuid4()
HERE, THERE = UUID(int=1), UUID(int=2)
UNKNOWN = Noted(Status.UNKNOWN, "", None, None, None)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def came(minutes: float) -> Seen:
    return Seen(TENANT, DEVICE, Status.ONLINE, "connected", at(minutes), at(minutes))


def went(minutes: float, *, since: float, reason: str = "connection lost") -> Seen:
    return Seen(TENANT, DEVICE, Status.OFFLINE, reason, at(minutes), at(since))


def test_a_device_comes_and_goes() -> None:
    online = after(UNKNOWN, came(0), HERE)
    assert online == Noted(Status.ONLINE, "connected", at(0), HERE, at(0))
    offline = after(online, went(3, since=0), HERE)
    assert offline == Noted(Status.OFFLINE, "connection lost", at(3), None, at(0))


def test_the_late_end_of_an_older_connection_elsewhere_changes_nothing() -> None:
    online = after(after(UNKNOWN, came(0), THERE), came(180), HERE)
    assert after(online, went(182, since=0), THERE) == online


def test_a_connection_told_after_a_newer_one_changes_nothing() -> None:
    online = after(UNKNOWN, came(1), HERE)
    assert after(online, came(0), THERE) == online


def test_a_short_visit_ends_what_an_older_endpoint_still_takes_for_open() -> None:
    online = after(UNKNOWN, came(0), THERE)
    offline = after(online, went(3, since=2), HERE)
    assert (offline.status, offline.endpoint_id) == (Status.OFFLINE, None)


def test_a_device_s_own_newer_word_stands_and_its_connection_is_noted_all_the_same() -> None:
    said = Noted(Status.ONLINE, "booted", at(1), None, None)
    assert after(said, came(0), HERE) == Noted(Status.ONLINE, "booted", at(1), HERE, at(0))


def test_who_says_the_same_again_after_losing_its_lease_holds_the_connection_anew() -> None:
    online = after(UNKNOWN, came(0), THERE)
    again = Seen(TENANT, DEVICE, Status.ONLINE, "connected", at(60), at(0))
    assert after(online, again, HERE) == Noted(Status.ONLINE, "connected", at(0), HERE, at(0))


def test_what_was_noted_by_a_clock_that_was_set_back_since_does_not_stand_for_ever() -> None:
    ahead = after(UNKNOWN, came(600), THERE)
    online = after(ahead, came(0), HERE)
    assert (online.endpoint_id, online.connected_at) == (HERE, at(0))
    offline = after(online, went(1, since=0), HERE)
    assert (offline.status, offline.status_at) == (Status.OFFLINE, at(1))
