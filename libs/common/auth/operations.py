"""Which operation of the API needs which permission: a table, written from the routes themselves.

A service knows its own routes alone, so what asks about all of them reads `operations.txt`, a line
an operation. `iiot permissions --write` writes it, and a test says when it is stale.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

PUBLIC = "-"
"""Stands in the table for an operation that asks nothing of anyone."""


@dataclass(frozen=True, slots=True, order=True)
class Operation:
    """An operation, by the template of its path, and the permissions that it needs, all of them."""

    path: str
    method: str
    permissions: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the operation is called."""
        return f"{self.method} {self.path}"

    @property
    def line(self) -> str:
        """How it stands in the table."""
        return f"{self.name} {' '.join(self.permissions) or PUBLIC}"

    def answers(self, method: str, path: str) -> bool:
        """Whether a request is for this operation."""
        mine, theirs = self.path.split("/"), path.split("/")
        return (
            method == self.method
            and len(mine) == len(theirs)
            and all(m == t or (m.startswith("{") and t) for m, t in zip(mine, theirs, strict=True))
        )


def read(lines: Iterable[str]) -> tuple[Operation, ...]:
    """Return the operations that stand in a table."""
    found = []
    for line in lines:
        method, path, *permissions = line.split()
        found.append(Operation(path, method, tuple(p for p in permissions if p != PUBLIC)))
    return tuple(found)


@cache
def operations() -> tuple[Operation, ...]:
    """Return all operations of the API, by path."""
    return read((files(__package__) / "operations.txt").read_text().splitlines())


def needing(permission: str) -> list[Operation]:
    """Return the operations that need a permission."""
    return [operation for operation in operations() if permission in operation.permissions]


def operation_at(method: str, path: str) -> Operation | None:
    """Return the operation that answers a request; None if there is none."""
    found = [o for o in operations() if o.answers(method.upper(), path)]
    # As routes are: what is written out goes before what stands for anything.
    return min(
        found, key=lambda o: [part.startswith("{") for part in o.path.split("/")], default=None
    )
