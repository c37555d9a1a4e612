"""Plans: what a tenant may have and use for what it pays."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from libs.common.quotas.terms import UNLIMITED, Resource, Terms

UNLIMITED_PLAN = "unlimited"

PLAN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")

Quotas = Mapping[Resource, Terms]
"""Terms by resource; what is not named has no limit of its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan. Built-in ones are always there; what they allow may be changed."""

    name: str
    description: str
    quotas: Quotas
    is_built_in: bool
    created_at: datetime
    updated_at: datetime
    version: int


def in_force(plan: Quotas, own: Quotas) -> dict[Resource, Terms]:
    """Return what a tenant may have of each resource: as its plan says, where it has no terms of its own."""
    return {resource: own.get(resource) or plan.get(resource) or UNLIMITED for resource in Resource}
