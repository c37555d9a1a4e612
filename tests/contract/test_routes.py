"""The gateway's table of who answers what, against what the services have."""

import pkgutil
from importlib import import_module

from fastapi import APIRouter

from services.gateway.domain.routes import API, OWNERS, segment_of


def answered() -> dict[str, set[str]]:
    """Return the services that have routes below each part of the API."""
    owners: dict[str, set[str]] = {}
    for service in {*OWNERS.values()}:
        package = import_module(f"services.{service}.api")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for router in vars(import_module(module.name)).values():
                if isinstance(router, APIRouter):
                    for route in router.routes:
                        path: str = route.path  # type: ignore[attr-defined]  # Starlette's base class has none
                        segment = segment_of(path)
                        if segment is not None:
                            owners.setdefault(segment, set()).add(service)
    return owners


def test_every_part_of_the_api_is_passed_on_to_the_one_service_that_answers_it() -> None:
    assert answered() == {segment: {owner} for segment, owner in OWNERS.items()}, API
