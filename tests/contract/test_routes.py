"""The gateway's table of who answers what, against what the services have."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from fastapi import APIRouter

from services.gateway.domain.routes import API, OURSELVES, OWNERS, owner_of, segment_of

SERVICES = {*OWNERS.values(), OURSELVES}


def routes() -> Iterator[tuple[str, str]]:
    """Give every service's routes below /api/v1/: whose, and the path."""
    for service in sorted(SERVICES):
        package = import_module(f"services.{service}.api")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for router in vars(import_module(module.name)).values():
                if isinstance(router, APIRouter):
                    for route in router.routes:
                        path: str = route.path  # type: ignore[attr-defined]  # Starlette's base class has none
                        if path.startswith(API):
                            yield service, path


def test_every_route_is_passed_on_to_the_one_service_that_answers_it() -> None:
    lost = {
        path: service
        for service, path in routes()
        if (owner_of(segment_of(path), path) or OURSELVES) != service
    }
    assert not lost, "these are asked of another service"


def test_no_part_of_the_api_is_passed_on_for_nothing() -> None:
    answered = {(segment_of(path), service) for service, path in routes()}
    assert answered >= {(segment, owner) for segment, owner in OWNERS.items()}
