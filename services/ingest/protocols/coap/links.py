"""What `/.well-known/core` says (RFC 6690). Pure."""

from collections.abc import Sequence

_TAKEN = "50 60 110 112"

LINKS: tuple[tuple[str, dict[str, str | None]], ...] = (
    ("/v1/telemetry", {"rt": "iiot.telemetry", "if": "core.b", "ct": _TAKEN}),
    ("/v1/attributes", {"rt": "iiot.attributes", "ct": "50"}),
    ("/v1/alerts", {"rt": "iiot.alerts", "ct": "50"}),
    ("/v1/status", {"rt": "iiot.status", "ct": "50"}),
    ("/v1/replies", {"rt": "iiot.replies", "ct": "50"}),
    ("/v1/commands", {"rt": "iiot.commands", "ct": "50", "obs": None}),
    ("/v1/latest", {"rt": "iiot.latest", "ct": "50", "obs": None}),
)


def links(queries: Sequence[str]) -> str:
    """Return the links, in link format, that all of the filters fit: `rt=iiot.commands`, `href=/v1/*`."""
    filters = [query.partition("=") for query in queries if "=" in query]
    return ",".join(
        _written(href, attributes)
        for href, attributes in LINKS
        if all(_fits(href, attributes, name, wanted) for name, _, wanted in filters)
    )


def _fits(href: str, attributes: dict[str, str | None], name: str, wanted: str) -> bool:
    values = [href] if name == "href" else (attributes.get(name) or "").split()
    if wanted.endswith("*"):
        return any(value.startswith(wanted[:-1]) for value in values)
    return wanted in values


def _written(href: str, attributes: dict[str, str | None]) -> str:
    parts = [name if value is None else f'{name}="{value}"' for name, value in attributes.items()]
    return ";".join([f"<{href}>", *parts])
