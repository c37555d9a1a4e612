"""Messages that come in blocks: whole or not at all, in bounded memory."""

import pytest
from aiocoap import Message
from aiocoap.numbers import Code
from aiocoap.optiontypes import BlockOption

from libs.common.errors import TooLarge
from services.ingest.protocols.coap.blocks import (
    MOST_OF_ONE,
    OPEN_S,
    Assemblies,
    Incomplete,
    block_of,
)

Block = BlockOption.BlockwiseTuple


def test_the_blocks_of_a_message_become_the_message() -> None:
    assemblies = Assemblies(10, 1_000)
    assert assemblies.take("pump", "a", Block(0, True, 0), b"a" * 16, None, 0.0) is None
    assert assemblies.take("pump", "b", Block(0, True, 0), b"x" * 16, None, 0.0) is None
    assert assemblies.take("pump", "a", Block(1, True, 0), b"b" * 16, None, 1.0) is None
    assert (
        assemblies.take("pump", "a", Block(2, False, 0), b"c", None, 2.0)
        == b"a" * 16 + b"b" * 16 + b"c"
    )
    assert len(assemblies) == 1


@pytest.mark.parametrize(
    "block", [Block(1, False, 0), Block(2, True, 0)], ids=["without the first", "a gap"]
)
def test_a_block_without_those_before_it_is_refused(block: object) -> None:
    assemblies = Assemblies(10, 1_000)
    if block == Block(2, True, 0):
        assemblies.take("pump", "a", Block(0, True, 0), b"a" * 16, None, 0.0)
    with pytest.raises(Incomplete):
        assemblies.take("pump", "a", block, b"b" * 16, None, 0.0)


def test_a_message_that_will_be_too_large_is_refused_at_its_first_block() -> None:
    assemblies = Assemblies(10, 100)
    with pytest.raises(TooLarge):
        assemblies.take("pump", "a", Block(0, True, 0), b"a" * 16, 101, 0.0)
    for number in range(6):
        assemblies.take("pump", "a", Block(number, True, 0), b"a" * 16, None, 0.0)
    with pytest.raises(TooLarge):
        assemblies.take("pump", "a", Block(6, True, 0), b"a" * 16, None, 0.0)
    assert len(assemblies) == 0


def begin(assemblies: Assemblies, owner: str, name: str, now: float = 0.0) -> None:
    assert assemblies.take(owner, name, Block(0, True, 0), b"a" * 16, None, now) is None


def end(assemblies: Assemblies, owner: str, name: str, now: float = 0.0) -> bytes | None:
    return assemblies.take(owner, name, Block(1, False, 0), b"b", None, now)


def test_a_message_that_was_begun_and_left_is_forgotten() -> None:
    assemblies = Assemblies(10, 100)
    begin(assemblies, "pump", "a")
    with pytest.raises(Incomplete):
        end(assemblies, "pump", "a", OPEN_S + 1)
    assert len(assemblies) == 0


def test_of_one_owner_there_are_a_few_and_its_oldest_gives_way() -> None:
    assemblies = Assemblies(100, 100)
    begin(assemblies, "fan", "x")
    for name in "abcde":
        begin(assemblies, "pump", name)
    assert len(assemblies) == MOST_OF_ONE + 1
    with pytest.raises(Incomplete):
        end(assemblies, "pump", "a")
    assert end(assemblies, "pump", "b") == b"a" * 16 + b"b"
    assert end(assemblies, "fan", "x") == b"a" * 16 + b"b"


def test_of_too_many_the_one_that_waited_longest_for_its_next_block_gives_way() -> None:
    assemblies = Assemblies(2, 100)
    begin(assemblies, "pump", "a")
    begin(assemblies, "fan", "b")
    assert assemblies.take("pump", "a", Block(1, True, 0), b"a" * 16, None, 1.0) is None
    begin(assemblies, "belt", "c")
    with pytest.raises(Incomplete):
        end(assemblies, "fan", "b")
    assert end(assemblies, "belt", "c") == b"a" * 16 + b"b"


def test_an_answer_is_cut_as_it_was_asked_for() -> None:
    answer = Message(code=Code.CONTENT, payload=bytes(range(100)))
    whole = b"".join(block_of(answer, Block(n, False, 1), 6).payload for n in range(4))
    assert whole == answer.payload
    first = block_of(answer, None, 2)
    assert (first.payload, first.opt.block2) == (answer.payload[:64], Block(0, True, 2))
    assert block_of(answer, None, 6) is answer
    assert block_of(answer, Block(9, False, 6), 6).code is Code.BAD_OPTION
