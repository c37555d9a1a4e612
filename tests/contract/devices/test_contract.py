"""The device contract: what the platform promises a device, whatever protocol it speaks.

A protocol that does not make a promise says why, in its driver and in the README's table alike; then
the case holds the two to each other.
"""

from datetime import timedelta
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest

from tests.contract.devices.conftest import Holds, Plant
from tests.contract.devices.driver import (
    Cut,
    DeviceDriver,
    Identity,
    NotLetIn,
    Promise,
    Reading,
    Refused,
)
from tests.contract.devices.promises import said_of
from tests.reading_times import next_ms
from tests.waiting import until

NO_TELEMETRY = (b"\xff\xfe no telemetry", b"{", b"[3]", b"null")
TOO_LARGE = b'{"values": {"text": "' + b"x" * 5_000_000 + b'"}}'


def with_another_end(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


@pytest.mark.parametrize("promise", Promise)
def test_the_table_of_promises_says_what_the_suite_finds(
    kind: type[DeviceDriver], promise: Promise
) -> None:
    reason = kind.exempt.get(promise)
    expected = "done" if reason is None else f"exempt: {reason}"
    assert said_of(kind, promise).startswith(expected)


async def test_what_is_acknowledged_is_stored_as_it_was_sent(plant: Plant) -> None:
    device_id, device = await plant.device()
    ts = next_ms()
    await device.send(Reading({"temp": 21.5, "speed": 1480.0}, ts))
    points = await plant.world.until_stored(device_id, 2)
    assert sorted((metric, value) for metric, _, value in points) == [
        ("speed", 1480.0),
        ("temp", 21.5),
    ]
    assert {round(at * 1000) for _, at, _ in points} == {ts}


async def test_a_batch_is_stored_whole(plant: Plant) -> None:
    device_id, device = await plant.device()
    first = next_ms() - 50_000
    await device.send(*(Reading({"temp": float(n)}, first + n * 1000) for n in range(50)))
    points = await plant.world.until_stored(device_id, 50)
    assert [(round(at * 1000), value) for _, at, value in points] == [
        (first + n * 1000, float(n)) for n in range(50)
    ]


async def test_what_comes_late_is_stored_at_its_own_time(plant: Plant) -> None:
    device_id, device = await plant.device()
    late = next_ms() - int(timedelta(days=3).total_seconds() * 1000)
    await device.send(Reading({"temp": 2.0}, next_ms()))
    await device.send(Reading({"temp": 1.0}, late))
    points = await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]
    assert round(points[0][1] * 1000) == late


async def test_what_is_sent_twice_is_stored_once(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.ONCE):
        return
    device_id, device = await plant.device()
    ts = next_ms()
    await device.send(Reading({"temp": 1.0}, ts))
    await device.send(Reading({"temp": 1.0}, ts))
    await device.send(Reading({"temp": 2.0}, ts + 1))
    await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in await plant.world.stored(device_id)] == [1.0, 2.0]


async def test_what_is_no_telemetry_is_refused_or_kept_and_its_neighbours_are_stored(
    plant: Plant, makes: Holds
) -> None:
    if not makes(Promise.BAD_INPUT):
        return
    device_id, device = await plant.device()
    ts = next_ms()
    await device.send(Reading({"temp": 1.0}, ts))
    acknowledged = 0
    for payload in NO_TELEMETRY:
        try:
            await device.send_raw(payload)
            acknowledged += 1
        except Refused:
            pass
    await device.send(Reading({"temp": 2.0}, ts + 1))
    points = await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]

    async def all_kept() -> bool:
        return len(await plant.quarantined(device_id)) == acknowledged

    await until(all_kept, f"{acknowledged} acknowledged messages in quarantine, with their reasons")


async def test_one_bad_point_does_not_cost_its_neighbours(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.BAD_INPUT):
        return
    device_id, device = await plant.device()
    ts = next_ms()
    ahead = ts + int(timedelta(days=2).total_seconds() * 1000)
    await device.send(
        Reading({"temp": 1.0}, ts), Reading({"temp": 2.0}, ahead), Reading({"temp": 3.0}, ts + 1)
    )
    points = await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 3.0]

    async def kept() -> bool:
        return await plant.quarantined(device_id) == ["clock_ahead"]

    await until(kept, "the point from the future in quarantine")


async def test_too_large_a_message_harms_nobody(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.TOO_LARGE):
        return
    identity = await plant.register()
    device = await plant.come(identity)
    neighbour_id, neighbour = await plant.device()
    try:
        await device.send_raw(TOO_LARGE)
    except (Refused, Cut, TimeoutError):
        pass  # a client that is cut in the midst of writing may not notice soon
    else:

        async def is_kept() -> bool:
            return bool(await plant.quarantined(identity.device_id))

        await until(is_kept, "what was acknowledged in quarantine")
    await neighbour.send(Reading({"temp": 1.0}, next_ms()))
    await plant.world.until_stored(neighbour_id, 1)
    await device.close()
    again = await plant.come(identity)
    await again.send(Reading({"temp": 2.0}, next_ms()))
    points = await plant.world.until_stored(identity.device_id, 1)
    assert [value for _, _, value in points] == [2.0]


async def test_nobody_comes_in_with_a_wrong_token_or_anothers(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.KNOWS_SENDERS):
        return
    device = await plant.register()
    other = await plant.register()
    strangers = {
        "a wrong token": Identity(device.device_id, with_another_end(device.token)),
        "another device's token": Identity(device.device_id, other.token),
        "no token": Identity(device.device_id, "x"),
        "an unknown device": Identity(uuid4(), device.token),
    }
    for what, stranger in strangers.items():
        try:
            await plant.come(stranger)
        except (NotLetIn, Cut):
            continue
        not_let_in(what)
    # The device itself is none the worse for it.
    mine = await plant.come(device)
    await mine.send(Reading({"temp": 1.0}, next_ms()))
    await plant.world.until_stored(device.device_id, 1)


def not_let_in(what: str) -> NoReturn:
    pytest.fail(f"let in with {what}")


async def test_nothing_is_acknowledged_before_it_is_safe(plant: Plant, makes: Holds) -> None:
    identity = await plant.register()
    device_id, device = identity.device_id, await plant.come(identity)
    if not makes(Promise.DURABLE):
        await what_is_safe_before_the_bus_has_it_is_stored_in_the_end(plant, device_id, device)
        return
    ts = next_ms()
    await device.send(Reading({"temp": 1.0}, ts))
    plant.bus.is_away = True
    refused = plant.bus.refused
    with pytest.raises((TimeoutError, Cut, Refused)):
        await device.send(Reading({"temp": 2.0}, ts + 1), within_s=1.0)
    await until(lambda: plant.bus.refused > refused, "it is tried")
    assert len(await plant.world.stored(device_id)) == 1
    plant.bus.is_away = False
    # What is sent again with its own time is stored once, whatever became of the first attempt.
    again = device if not await device.is_cut() else await plant.come(identity)
    await again.send(Reading({"temp": 2.0}, ts + 1))
    points = await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]


async def what_is_safe_before_the_bus_has_it_is_stored_in_the_end(
    plant: Plant, device_id: UUID, device: DeviceDriver
) -> None:
    """Whoever acknowledges in our place answers for it: the device need not send it again."""
    ts = next_ms()
    await device.send(Reading({"temp": 1.0}, ts))
    await plant.world.until_stored(device_id, 1)
    plant.bus.is_away = True
    refused = plant.bus.refused
    await device.send(Reading({"temp": 2.0}, ts + 1))
    await until(lambda: plant.bus.refused > refused, "it was tried")
    assert len(await plant.world.stored(device_id)) == 1
    plant.bus.is_away = False
    points = await plant.world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [1.0, 2.0]


async def test_a_removed_device_is_cut_off_within_five_seconds(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.REVOCATION):
        return
    identity = await plant.register()
    device = await plant.come(identity)
    await device.send(Reading({"temp": 1.0}, next_ms()))
    assert not await device.is_cut()
    await remove(plant, identity.device_id)
    await until(device.is_cut, "cut off", within_s=5)
    with pytest.raises((NotLetIn, Cut)):
        await plant.come(identity)


async def remove(plant: Plant, device_id: UUID) -> None:
    answer = await plant.world.http.delete(
        f"/api/v1/devices/{device_id}", headers=plant.world.headers
    )
    assert answer.status_code == 204, answer.text


async def test_a_device_whose_token_is_replaced_is_cut_off_and_comes_in_with_the_new_one(
    plant: Plant, makes: Holds
) -> None:
    if not makes(Promise.REVOCATION):
        return
    identity = await plant.register()
    device = await plant.come(identity)
    answer = await plant.world.http.post(
        f"/api/v1/devices/{identity.device_id}/credentials", headers=plant.world.headers
    )
    assert answer.status_code == 201, answer.text
    token = answer.json()["token"]
    await until(device.is_cut, "cut off", within_s=5)
    with pytest.raises((NotLetIn, Cut)):
        await plant.come(identity)
    renewed = await plant.come(Identity(identity.device_id, token))
    await renewed.send(Reading({"temp": 1.0}, next_ms()))
    await plant.world.until_stored(identity.device_id, 1)


async def command(plant: Plant, device_id: UUID, name: str, **asked: object) -> str:
    """Send a command to a device as a user; return its id."""
    answer = await plant.world.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": name, **asked},
        headers=plant.world.headers,
    )
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


async def outcome(plant: Plant, device_id: UUID, command_id: str) -> dict[str, Any]:
    """Return a command that is done."""
    said: dict[str, Any] = {}

    async def is_done() -> bool:
        answer = await plant.world.http.get(
            f"/api/v1/devices/{device_id}/commands/{command_id}", headers=plant.world.headers
        )
        said.update(answer.json())
        return said["status"] in ("succeeded", "failed", "expired")

    await until(is_done, f"the outcome of the command to {device_id}")
    return said


async def test_a_command_reaches_the_device_and_its_answer_the_user(
    plant: Plant, makes: Holds
) -> None:
    if not makes(Promise.COMMANDS):
        return
    device_id, device = await plant.device()
    first = await command(plant, device_id, "set_speed", params={"rpm": 900})
    second = await command(plant, device_id, "stop")
    seen = await device.next_command()
    assert (seen.id, seen.name, seen.params) == (first, "set_speed", {"rpm": 900})
    await device.reply(seen, "succeeded", result={"rpm": 899.5})
    said = await outcome(plant, device_id, first)
    assert (said["status"], said["result"]) == ("succeeded", {"rpm": 899.5})
    seen = await device.next_command()
    assert (seen.id, seen.name, seen.params) == (second, "stop", {})
    await device.reply(seen, "failed", error="the door is open")
    said = await outcome(plant, device_id, second)
    assert (said["status"], said["error"]) == ("failed", "the door is open")


async def test_a_command_waits_for_a_device_that_is_away(plant: Plant, makes: Holds) -> None:
    if not makes(Promise.COMMANDS):
        return
    identity = await plant.register()
    command_id = await command(plant, identity.device_id, "blink", params={"times": 3})
    device = await plant.come(identity)
    seen = await device.next_command()
    assert (seen.id, seen.name, seen.params) == (command_id, "blink", {"times": 3})
    await device.reply(seen, "succeeded")
    assert (await outcome(plant, identity.device_id, command_id))["status"] == "succeeded"
