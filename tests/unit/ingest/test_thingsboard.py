"""What devices made for ThingsBoard write, and who they say they are."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from libs.common.errors import Malformed
from libs.common.historian.point import Kind
from services.ingest.domain.channel import Channel
from services.ingest.domain.payload import Window
from services.ingest.domain.thingsboard import decode_thingsboard
from services.ingest.domain.token import PREFIX
from services.ingest.protocols.mqtt.introduction import NotIntroduced, introduction_of
from services.ingest.protocols.mqtt.packets import Connect
from services.ingest.protocols.mqtt.thingsboard import ThingsBoardTopics
from services.ingest.protocols.mqtt.topics import Topics

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))
DEVICE = UUID("11111111-2222-4333-8444-555555555555")
OTHER = UUID("99999999-2222-4333-8444-555555555555")
TOKEN = PREFIX + 43 * "a"


def read(message: object) -> list[tuple[str, Kind, float | str]]:
    decoded = decode_thingsboard(json.dumps(message).encode(), NOW, WINDOW)
    assert decoded.refused == []
    return [(point.metric, point.kind, point.value) for point in decoded.points]


def test_an_object_or_an_array_is_kept_as_the_text_of_its_json() -> None:
    nested = {"a": {"b": [1, None]}, "c": 1.5, "d": []}
    expected = [
        ("a", Kind.TEXT, '{"b":[1,null]}'),
        ("c", Kind.NUMBER, 1.5),
        ("d", Kind.TEXT, "[]"),
    ]
    assert read(nested) == expected
    assert read({"ts": int(NOW.timestamp() * 1000), "values": nested}) == expected
    assert read([nested]) == expected


def test_what_is_no_json_is_refused_and_one_bad_value_costs_no_other() -> None:
    with pytest.raises(Malformed):
        decode_thingsboard(b"{", NOW, WINDOW)
    decoded = decode_thingsboard(b'{"a": null, "b": {"c": 1}}', NOW, WINDOW)
    assert [point.metric for point in decoded.points] == ["b"]
    assert [refusal.metric for refusal in decoded.refused] == ["a"]


def test_a_command_goes_down_by_a_number_and_its_answer_is_known_by_it() -> None:
    topics = ThingsBoardTopics.of_anybody()
    command_id = uuid4()
    payload = json.dumps({"id": str(command_id), "name": "reboot", "params": {"in": 5}})
    topic, sent = topics.command(command_id, payload.encode())
    number = topic.removeprefix(b"v1/devices/me/rpc/request/")
    assert 0 <= int(number) < 2**31
    assert json.loads(sent) == {"method": "reboot", "params": {"in": 5}}
    assert topics.command(command_id, payload.encode()) == (topic, sent), "again: the same number"
    answered = b"v1/devices/me/rpc/response/" + number
    assert topics.replies_to(command_id) == answered
    assert topics.channel_of(answered) is Channel.REPLIES
    for said, result in ((b'{"ok":true}', {"ok": True}), (b"", None), (b"done", "done")):
        assert json.loads(topics.message(Channel.REPLIES, answered, said)) == {
            "id": str(UUID(int=int(number))),
            "status": "succeeded",
            "result": result,
        }


@pytest.mark.parametrize(
    "topic",
    [
        b"v1/devices/me/rpc/response/",
        b"v1/devices/me/rpc/response/x",
        b"v1/devices/me/rpc/request/1",
        b"v1/devices/me/commands",
        b"v1/devices/me/status",
        b"v1/gateway/telemetry",
    ],
)
def test_other_topics_are_not_its_own(topic: bytes) -> None:
    assert ThingsBoardTopics.of_anybody().channel_of(topic) is None


def connect(client_id: str, username: str | None, password: bytes | None) -> Connect:
    return Connect(client_id, username, password, True, 60, None)


@pytest.mark.parametrize("client_id", ["", "anything", str(DEVICE)])
@pytest.mark.parametrize("password", [None, b""])
def test_a_token_as_the_user_name_says_who_it_is(client_id: str, password: bytes | None) -> None:
    said = introduction_of(connect(client_id, TOKEN, password))
    assert (said.device_id, said.password) == (None, TOKEN.encode())
    assert isinstance(said.topics, ThingsBoardTopics)
    assert not said.by_certificate


@pytest.mark.parametrize("username", [None, "", str(DEVICE)])
def test_a_certificate_needs_no_password_but_the_devices_id(username: str | None) -> None:
    said = introduction_of(connect(str(DEVICE), username, None), has_certificate=True)
    assert (said.device_id, said.by_certificate) == (DEVICE, True)
    assert said.topics == Topics.own(DEVICE)


def test_a_token_counts_also_beside_a_certificate() -> None:
    claim = connect(str(DEVICE), str(DEVICE), TOKEN.encode())
    said = introduction_of(claim, has_certificate=True)
    assert (said.password, said.by_certificate) == (TOKEN.encode(), False)


@pytest.mark.parametrize(
    ("client_id", "username", "password", "has_certificate"),
    [
        (str(DEVICE), None, None, False),
        (str(DEVICE), str(DEVICE), None, False),
        ("", None, None, True),
        ("pump 7", None, None, True),
        (str(DEVICE), str(OTHER), None, True),
        ("anything", TOKEN, b"secret", False),
        ("anything", "iiotd_short", None, False),
    ],
)
def test_who_is_not_introduced(
    client_id: str, username: str | None, password: bytes | None, has_certificate: bool
) -> None:
    with pytest.raises(NotIntroduced):
        introduction_of(connect(client_id, username, password), has_certificate=has_certificate)
