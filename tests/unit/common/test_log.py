import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel, SecretStr
from structlog.contextvars import bind_contextvars, clear_contextvars

from libs.common import log

CANARY = "canary-8d1f0c"


@dataclass
class Credentials:
    username: str
    password: str


class Login(BaseModel):
    user: str
    passphrase: str


class Key(msgspec.Struct):
    id: str
    api_key: str


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, object]]]]:
    """What was written to stdout since the last look, as JSON."""
    log.configure("test", level="debug", pretty=False)
    clear_contextvars()

    def read() -> list[dict[str, object]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield read
    clear_contextvars()
    log.configure("test", level="info", pretty=False)


Lines = Callable[[], list[dict[str, object]]]


def test_a_line_says_when_what_where_and_for_whom(lines: Lines) -> None:
    bind_contextvars(request_id="r-1", tenant="acme", trace_id="t-1")
    log.logger("services.rules.handlers").info("rule tripped", device="press-7")
    (line,) = lines()
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "event": "rule tripped",
        "service": "test",
        "module": "services.rules.handlers",
        "request_id": "r-1",
        "tenant": "acme",
        "trace_id": "t-1",
        "device": "press-7",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"password": CANARY},
        {"API-Key": CANARY},
        {"apiKey": CANARY},
        {"headers": {"Authorization": CANARY, "Set-Cookie": CANARY}},
        {"deep": [{"a": ({"refresh_token": CANARY},)}]},
        {"private_key": CANARY.encode()},
        {"pin": int.from_bytes(b"\x12\x34")},
        {"anything": SecretStr(CANARY)},
        {"who": Credentials("ada", CANARY)},
        {"who": Login(user="ada", passphrase=CANARY)},
        {"who": Key("k1", CANARY)},
        {"url": f"postgresql://ingest:{CANARY}@db:5432/iiot"},
        {"url": f"redis://:{CANARY}@cache"},
        {"text": f"Authorization: Bearer {CANARY}"},
        {"text": f"GET /ws?ticket={CANARY}&x=1"},
        {"text": f'{{"client_secret": "{CANARY} with blanks"}}'},
        {"text": f"Cookie: a=1; session={CANARY}"},
        {"text": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"},
        {"text": f"-----BEGIN EC PRIVATE KEY-----\n{CANARY}"},
        {"text": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"},
        {"error": ValueError(f"bad token={CANARY}")},
        {"exc_info": ValueError(f"amqp://guest:{CANARY}@rabbit refused")},
    ],
)
def test_a_secret_never_reaches_the_log(lines: Lines, fields: dict[str, object]) -> None:
    log.logger("m").error("something", **fields)
    written = json.dumps(lines())
    assert log.HIDDEN in written
    for secret in (CANARY, "c2ln", "4660"):
        assert secret not in written


def test_a_secret_in_the_event_text_or_the_context_is_hidden_too(lines: Lines) -> None:
    bind_contextvars(session_token=CANARY)
    log.logger("m").info(f"login with password={CANARY}")
    assert CANARY not in json.dumps(lines())


def test_what_is_no_secret_stays_readable(lines: Lines) -> None:
    log.logger("m").info(
        "ok", token_id="t-7", has_password=True, password=None, device="pump-1", ratio=0.5
    )
    (line,) = lines()
    assert line["token_id"] == "t-7"
    assert line["has_password"] is True
    assert line["device"] == "pump-1"
    assert line["ratio"] == 0.5


def test_the_standard_librarys_loggers_leave_by_the_same_way(lines: Lines) -> None:
    logging.getLogger("aio_pika.robust").warning("lost %s", f"amqp://u:{CANARY}@rabbit/")
    (line,) = lines()
    assert line["event"] == f"lost amqp://{log.HIDDEN}@rabbit/"
    assert line["module"] == "aio_pika.robust"
    assert line["level"] == "warning"


def test_an_exception_is_one_line_with_its_traceback(lines: Lines) -> None:
    try:
        raise RuntimeError("pump is dry")
    except RuntimeError:
        log.logger("m").exception("job failed")
    (line,) = lines()
    assert line["level"] == "error"
    assert "RuntimeError: pump is dry" in str(line["exception"])


def test_no_value_breaks_a_log_line(lines: Lines) -> None:
    circle: list[object] = []
    circle.append(circle)
    log.logger("m").info("odd \ud800", circle=circle, blob=b"\x00" * 9, nan=float("nan"), t=object)
    (line,) = lines()
    assert line["blob"] == "<9 bytes>"


def test_below_the_level_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("test", level="warning", pretty=False)
    log.logger("quiet").info("hello")
    logging.getLogger("quiet").info("hello")
    assert capsys.readouterr().out == ""
    log.configure("test", level="info", pretty=False)


def test_the_file_rotates_and_keeps_as_many_as_told(lines: Lines, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "test.log"
    log.configure("test", file=file, file_bytes=500, file_count=2, pretty=False)
    for number in range(40):
        log.logger("m").info("line", number=number)
    log.configure("test", pretty=False)
    kept = sorted(p.name for p in file.parent.iterdir())
    assert kept == ["test.log", "test.log.1", "test.log.2"]
    assert json.loads(file.read_text().splitlines()[-1])["number"] == 39


def test_people_read_text_and_still_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("test", pretty=True)
    log.logger("m").info("pump started", device="pump-1", password=CANARY)
    written = capsys.readouterr().out
    assert "pump started" in written
    assert "pump-1" in written
    assert not written.startswith("{")
    assert CANARY not in written
    log.configure("test", level="info", pretty=False)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        log.configure("test", level="loud")


def test_what_a_library_says_of_its_own_plugins_at_each_start_is_not_written(lines: Lines) -> None:
    logging.getLogger("alembic.runtime.plugins").info("setup plugin alembic.autogenerate.schemas")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade 0001 -> 0002, Room")
    assert [line["event"] for line in lines()] == ["Running upgrade 0001 -> 0002, Room"]


@pytest.mark.parametrize(
    "unit",
    [
        "token",
        "token-",
        "password_secret",
        "eyJ-",
        "eyJaaaaaaaa.",
        "cookie ",
        "cookie  ",
        "Bearer ",
        "Bearer aaaaaa",
        "token=",
        'token="',
        "token='\"",
        "token   ",
        "://a@",
        "://",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY",
        "-----BEGIN A PRIVATE KEY-----END ",
    ],
)
def test_however_long_and_ill_meant_a_text_is_it_is_looked_through_at_once(unit: str) -> None:
    text = "x:/ " + unit * (1_000_000 // len(unit))
    began = time.thread_time()
    log.redact_text(text)
    # Some 10 ms. What takes the square of the length needs seconds.
    assert time.thread_time() - began < 0.25


@pytest.mark.parametrize(
    "text",
    [
        f"{'a-' * 40}token={CANARY}",
        f'{{"token": "{CANARY} and the rest was cut',
        f"x-eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.{CANARY}",
    ],
)
def test_a_secret_is_hidden_however_it_is_framed(text: str) -> None:
    assert CANARY not in log.redact_text(text)
