"""Structured logs: one JSON object a line on stdout, readable text on a terminal, never a secret.

Fields: time (RFC 3339, UTC), level, event, service, and from the context request_id, tenant and
trace_id. The standard library's loggers (uvicorn, aio-pika, asyncio) leave by the same way.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import cast

import msgspec
import structlog
from pydantic import BaseModel, SecretBytes, SecretStr
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

HIDDEN = "***"

_MAX_DEPTH = 8
_MAX_ITEMS = 200
_MAX_TEXT = 32_768

_SENSITIVE_KEY = re.compile(
    r"passw|pwd|passphrase|secret|token|authorization|cookie|credential|api_?key|private_?key"
    r"|signing_?key|session_?key|access_?key|ticket|(?:^|_)(?:psk|otp|totp|pin|jwt|dsn)(?:_|$)"
)
# What is said about a secret is no secret: token_id, secret_name, password_changed_at.
_ABOUT_A_SECRET = re.compile(r"_(?:id|ids|type|kind|name|count|at|s|ms)$")

_KEY_WORD = (
    r"(?=[\w-]*(?:password|passwd|passphrase|secret|token|authorization|credentials?"
    r"|api[_-]?key|private[_-]?key|ticket))[\w-]++"
)
# Strangers choose what is looked at, so each pattern takes time in proportion to the text: it
# starts at the beginning of a word alone, and gives nothing back (`++`) that it went over.
_IN_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END \1PRIVATE KEY-----|\Z)", re.DOTALL),
        HIDDEN,
    ),
    (re.compile(r"(?<![\w-])(?=[\w-]*eyJ[\w-]{8})[\w-]++\.[\w-]++\.[\w-]*+"), HIDDEN),
    (re.compile(r"(?<=://)[^/?#\s\"'<>]*@"), HIDDEN + "@"),
    (re.compile(r"\b((?i:bearer)|Basic)\s++[\w.~+/=-]{6,}+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*+[:=]).*+"), rf"\1 {HIDDEN}"),
    (
        re.compile(rf"(?i)(?<![\w-])({_KEY_WORD}[\"']?\s*+[=:]\s*+)(?:\"[^\"]*+\"?|'[^']*+'?|[^\s\"'&,;}}\])]++)"),
        rf"\1{HIDDEN}",
    ),
)  # fmt: skip


@lru_cache(maxsize=4096)
def is_sensitive(key: str) -> bool:
    """Say whether a value under this name must not be written down."""
    name = key.lower().replace("-", "_")
    return _SENSITIVE_KEY.search(name) is not None and _ABOUT_A_SECRET.search(name) is None


def redact_text(text: str) -> str:
    """Return the text without passwords in URLs, bearer tokens, JWTs, private keys, `secret=…`."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "…"
    # Most values (ids, paths, methods) hold none of these and are done.
    if "=" not in text and ":" not in text and " " not in text and "eyJ" not in text:
        return text
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact(value: object, depth: int = 0) -> object:
    """Return the value as plain JSON data, without secrets at any depth.

    A secret is known by its key's name, by its type (pydantic SecretStr) or by its look in a text.
    What has no JSON form is written as its type's text; bytes as their length.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, SecretStr | SecretBytes):
        return HIDDEN
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, BaseException):
        return redact_text(f"{type(value).__name__}: {value}")
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return _redact_items(value.items(), depth)
    if isinstance(value, BaseModel):
        return _redact_items(value.__dict__.items(), depth)
    if isinstance(value, msgspec.Struct):
        return _redact_items(
            ((name, getattr(value, name)) for name in value.__struct_fields__), depth
        )
    if is_dataclass(value) and not isinstance(value, type):
        return _redact_items(((f.name, getattr(value, f.name)) for f in fields(value)), depth)
    if isinstance(value, Sequence | AbstractSet):
        return [redact(item, depth + 1) for _, item in zip(range(_MAX_ITEMS), value, strict=False)]
    return redact_text(str(value))


def _redact_items(items: Iterable[tuple[object, object]], depth: int) -> dict[str, object]:
    plain: dict[str, object] = {}
    for _, (key, value) in zip(range(_MAX_ITEMS), items, strict=False):
        name = key if isinstance(key, str) else str(key)
        # That a secret is there, or is not, may be said.
        if is_sensitive(name) and value is not None and not isinstance(value, bool):
            plain[name] = HIDDEN
        else:
            plain[name] = redact(value, depth + 1)
    return plain


class _Sink:
    """Where finished lines go: stdout, and a rotating file if there is one."""

    def __init__(self) -> None:
        self.service = "unknown"
        self.pretty: structlog.dev.ConsoleRenderer | None = None
        self.file: RotatingFileHandler | None = None
        self.is_silent = False

    def write(self, event: dict[str, object]) -> None:
        """Write one event that is already redacted. A full or closed stdout loses the line, not the work."""
        line = _encode_json(event).decode()
        if not self.is_silent:
            self._show(event, line)
        if self.file is not None:
            self.file.handle(logging.makeLogRecord({"msg": line}))

    def _show(self, event: dict[str, object], line: str) -> None:
        if self.pretty is not None:
            line = str(self.pretty(None, str(event.get("level", "info")), _for_people(event)))
        try:
            # Looked up each time, because stdout may be replaced; one write, so that lines stay whole.
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass


class _Wrapped:
    """What structlog wraps: the sink, with the name the logger was asked for."""

    __slots__ = ("module",)

    def __init__(self, module: str | None = None) -> None:
        self.module = module

    def write(self, event: dict[str, object]) -> None:
        _sink.write(event)

    # The names that structlog calls it by.
    debug = info = warning = error = critical = exception = msg = write


def _encode_json(event: dict[str, object]) -> bytes:
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:
        # A lone surrogate in a text: msgspec refuses it, and a log line must not raise.
        return _encoder.encode(_without_surrogates(event))


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {str(_without_surrogates(k)): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value


def _for_people(event: dict[str, object]) -> EventDict:
    """Return a copy as structlog's console renderer expects it: `timestamp` first, short."""
    shown: EventDict = dict(event)
    shown["timestamp"] = str(shown.pop("time", ""))[11:23]
    return shown


_encoder = msgspec.json.Encoder()
_sink = _Sink()

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def _format_exception(exc_info: object) -> str | None:
    """Return the traceback named by `exc_info` (True, an exception or a triple), if there is one."""
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        error = cast(_ExcInfo, exc_info)[1]
    else:
        error = sys.exc_info()[1] if exc_info else None
    return "".join(traceback.format_exception(error)) if error is not None else None


def _finish(wrapped: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add time, level, service and the traceback; take the secrets out."""
    failure = _format_exception(event.pop("exc_info", None))
    plain: EventDict = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": "error" if method == "exception" else method,
        "event": redact(event.pop("event", "")),
        "service": _sink.service,
    }
    if isinstance(wrapped, _Wrapped) and wrapped.module is not None:
        plain["module"] = wrapped.module
    for name, value in _redact_items(event.items(), 0).items():
        if value is not None:
            plain[name] = value
    if failure is not None:
        plain["exception"] = redact_text(failure)
    return plain


def _hand_over(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[EventDict], dict[str, object]]:
    """Give the event to the sink as its only argument."""
    return (event,), {}  # fmt: skip


class _StandardLibrary(logging.Handler):
    """Brings the records of `logging` to the same sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: EventDict = {"event": record.getMessage()}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            event = dict(merge_contextvars(None, "", event))
            _sink.write(dict(_finish(_Wrapped(record.name), record.levelname.lower(), event)))
        except Exception:  # noqa: BLE001 - a log line must never break the work it tells of
            self.handleError(record)


# structlog types a processor's result as one kind of value; the last one returns arguments.
# One list for ever: loggers keep the one they met first, and a test that captures exchanges what is in it.
_PROCESSORS: list[Processor] = [merge_contextvars, _finish, _hand_over]


def logger(name: str) -> FilteringBoundLogger:
    """Return a module's logger; call it with `__name__`."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


def configure(
    service: str,
    *,
    level: str = "INFO",
    file: Path | str | None = None,
    file_bytes: int = 20 * 1024 * 1024,
    file_count: int = 5,
    pretty: bool | None = None,
    silent: bool = False,
) -> None:
    """Set up logging for the process. `service` is the default of the field; a request may name another.

    `file` is written as JSON lines and rotated at `file_bytes`, keeping `file_count` old ones.
    `pretty` is readable text instead of JSON on stdout; None means: if stdout is a terminal.
    `silent` keeps stdout free for whoever else speaks there.
    Call it once, early: loggers keep the level that stood at their first line.
    Raises ValueError for a level that does not exist, OSError if the file cannot be opened.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level {level!r}")
    if pretty is None:
        pretty = sys.stdout.isatty()
    if _sink.file is not None:
        _sink.file.close()
        _sink.file = None
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        _sink.file = RotatingFileHandler(
            file, maxBytes=file_bytes, backupCount=file_count, encoding="utf-8"
        )
    _sink.service = service
    _sink.is_silent = silent
    _sink.pretty = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()) if pretty else None

    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Wrapped,
        cache_logger_on_first_use=True,
    )
    _route_standard_library(number)


def _route_standard_library(level: int) -> None:
    root = logging.getLogger()
    # Others' handlers stay (a test runner has its own).
    for handler in [h for h in root.handlers if isinstance(h, _StandardLibrary)]:
        root.removeHandler(handler)
    root.addHandler(_StandardLibrary())
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        standard = logging.getLogger(name)
        standard.handlers.clear()
        standard.propagate = True
    # We write one line a request ourselves, with its id and its route.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Alembic names each of its own plugins at every start.
    for name in ("aio_pika", "aiormq", "asyncio", "httpx2", "httpcore2", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
