"""Groups of devices: sites, areas, lines, in a tree."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict

DEEPEST = 10
"""Levels, the root's included."""
MOST_GROUPS = 10_000
"""Of a tenant."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of devices. Times are UTC."""

    id: UUID
    parent_id: UUID | None
    name: str
    kind: str
    """What it is in the plant: site, area, line, or whatever the tenant calls it."""
    path: tuple[UUID, ...]
    """The ids from the root down to the group itself."""
    created_at: datetime
    updated_at: datetime
    version: int


def placed_below(group: Group, parent: Group | None, height: int) -> Group:
    """Return the group below another one, or as a root.

    `height` is how many levels the group's own tree has. Raises Conflict if the tree would be too
    deep, or the group below itself.
    """
    above = () if parent is None else parent.path
    if group.id in above:
        raise Conflict("a group cannot be below itself")
    if len(above) + height > DEEPEST:
        raise Conflict(f"groups are {DEEPEST} levels deep at most")
    return replace(group, parent_id=None if parent is None else parent.id, path=(*above, group.id))
