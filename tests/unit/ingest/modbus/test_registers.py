"""Registers: asked for in few requests, and what they mean."""

import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.protocols.modbus.registers import (
    MOST_BITS,
    MOST_REGISTERS,
    Block,
    Order,
    Register,
    Table,
    Type,
    blocks,
    value_of,
    words_for,
    words_of,
)


def holding(address: int, held: Type = Type.UINT16, **more: Any) -> Register:
    return Register(Table.HOLDING, address, held, **more)


def test_neighbours_share_a_request_and_those_far_off_do_not() -> None:
    first, tenth, wide, far = holding(0), holding(10), holding(11, Type.FLOAT32), holding(100)
    assert blocks([tenth, first, wide, far]) == [
        Block(Table.HOLDING, 0, 13, (first, tenth, wide)),
        Block(Table.HOLDING, 100, 1, (far,)),
    ]


def test_each_table_is_asked_on_its_own() -> None:
    asked = blocks(
        [holding(0), Register(Table.INPUT, 0, Type.UINT16), Register(Table.COIL, 0, Type.BOOL)]
    )
    assert {block.table for block in asked} == {Table.HOLDING, Table.INPUT, Table.COIL}


registers = st.builds(
    Register,
    st.sampled_from([Table.HOLDING, Table.INPUT]),
    st.integers(0, 65_500),
    st.sampled_from([Type.UINT16, Type.FLOAT32, Type.FLOAT64, Type.STRING]),
    length=st.integers(1, 30),
) | st.builds(Register, st.just(Table.COIL), st.integers(0, 65_500), st.just(Type.BOOL))


@given(st.lists(registers, min_size=1, max_size=200))
def test_all_are_covered_whole_and_no_request_is_too_long(asked: list[Register]) -> None:
    found = blocks(asked)
    for block in found:
        for register in block.registers:
            assert register.table is block.table
            assert block.address <= register.address
            assert register.end <= block.address + block.count
        assert 0 < block.count <= (MOST_BITS if block.table.is_bits else MOST_REGISTERS)
    # Each is read once, also where it lies within two blocks: it would be stored twice.
    assert Counter(each for block in found for each in block.registers) == Counter(asked)


def test_what_lies_within_two_long_values_is_read_with_one_of_them() -> None:
    long, longer = holding(0, Type.STRING, length=100), holding(50, Type.STRING, length=100)
    within = holding(60)
    assert [block.registers for block in blocks([long, longer, within])] == [
        (long,),
        (longer, within),
    ]


@given(
    value=st.integers(-(2**31), 2**31 - 1),
    word_order=st.sampled_from(["big", "little"]),
    byte_order=st.sampled_from(["big", "little"]),
)
def test_what_is_written_is_read_back(value: int, word_order: Order, byte_order: Order) -> None:
    register = holding(0, Type.INT32, word_order=word_order, byte_order=byte_order)
    assert value_of(register, words_for(register, value)) == value


@pytest.mark.parametrize(
    ("word_order", "byte_order", "packed"),
    [
        ("big", "big", "ABCD"),
        ("little", "big", "CDAB"),
        ("big", "little", "BADC"),
        ("little", "little", "DCBA"),
    ],
)
def test_the_four_orders_of_the_manuals(word_order: Order, byte_order: Order, packed: str) -> None:
    plain = dict(zip("ABCD", struct.pack(">f", 49.5), strict=True))
    words = list(struct.unpack(">2H", bytes(plain[each] for each in packed)))
    register = holding(0, Type.FLOAT32, word_order=word_order, byte_order=byte_order)
    assert value_of(register, words) == 49.5


def test_scale_and_offset_bring_in_no_dust() -> None:
    assert value_of(holding(0, scale=0.1), [2305]) == 230.5
    assert value_of(holding(0, Type.INT16, scale=0.1, offset=-40), [0xFFFF]) == -40.1
    assert words_for(holding(0, scale=0.1), 230.5) == [2305]


def test_a_bit_of_a_word_and_a_text() -> None:
    assert value_of(holding(0, Type.BOOL, bit=3), [0b1000]) is True
    assert value_of(holding(0, Type.BOOL, bit=2), [0b1000]) is False
    name = holding(0, Type.STRING, length=4)
    assert value_of(name, words_for(name, "pump")) == "pump"


def test_a_text_ends_where_a_device_ends_it() -> None:
    """What lies behind is what was left of a longer one: with a zero in it no text is kept."""
    packed = b"on \0ff\xff\0"
    assert value_of(holding(0, Type.STRING, length=4), struct.unpack(">4H", packed)) == "on"


def test_a_register_s_own_words_are_found_in_its_block() -> None:
    block = Block(Table.HOLDING, 10, 5, ())
    assert words_of(holding(12, Type.FLOAT32), block, [0, 1, 2, 3, 4]) == [2, 3]


def test_no_number_is_no_value() -> None:
    words = struct.unpack(">2H", struct.pack(">f", float("nan")))
    with pytest.raises(ValueError, match="no number"):
        value_of(holding(0, Type.FLOAT32), words)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (holding(0), 70_000),
        (holding(0), -1),
        (holding(0), True),
        (holding(0), "1"),
        (holding(0, Type.FLOAT32), 1e300),
        (holding(0, Type.BOOL, bit=1), True),
        (holding(0, Type.STRING), "too long"),
        (Register(Table.INPUT, 0, Type.UINT16), 1),
        (Register(Table.COIL, 0, Type.BOOL), 1),
    ],
)
def test_what_does_not_fit_is_not_written(register: Register, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        words_for(register, value)
