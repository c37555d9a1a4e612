"""The groups that a sheet adds to the tree, before anything is written."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from services.ingest.domain.group import DEEPEST
from services.ingest.store.store import IngestStore
from services.ingest.usecases import bulk

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def tree() -> bulk.Tree:
    """A tree that nothing is in yet, and that asks no database."""
    return bulk.Tree(cast(IngestStore, cast(Any, None)), NOON)


def test_a_group_is_below_the_one_that_stands_before_it(tree: bulk.Tree) -> None:
    tree.grow(("North", "Line 1"))
    tree.grow(("North", "Line 2"))
    north = tree.ids(("North",))
    assert len(north) == 1
    for line in ("Line 1", "Line 2"):
        assert tree.ids(("North", line))[:-1] == north
    assert tree.ids(("North", "Line 1")) != tree.ids(("North", "Line 2"))
    assert tree.ids(()) == ()


def test_rows_share_the_room_there_is(tree: bulk.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST_GROUPS", 3)
    assert tree.has_room_for(("a", "b"))
    tree.grow(("a", "b"))
    assert tree.has_room_for(("a", "c"))
    assert not tree.has_room_for(("c", "d"))
    assert not tree.has_room_for(("a",) * (DEEPEST + 1))
