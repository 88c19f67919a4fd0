"""`find_blocks` against `read_car`, which reads everything."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.atproto.car import find_blocks, read_car, write_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.rules import MAX_BLOCK

blocks = st.lists(st.binary(max_size=300), min_size=1, max_size=12, unique=True)


@given(blocks, st.data())
def test_it_finds_what_read_car_finds(contents: list[bytes], data: st.DataObject) -> None:
    pairs = [(Cid.of(content), content) for content in contents]
    car = write_car([pairs[0][0]], pairs)
    wanted = data.draw(st.sets(st.sampled_from([cid for cid, _ in pairs])))
    whole = read_car(car)
    roots, found = find_blocks(car, {*wanted, Cid.of(b"not there at all")})
    assert roots == whole.roots
    assert found == {cid: whole.blocks[cid] for cid in wanted}


@given(blocks, st.integers(1, 60))
def test_a_cut_off_car_is_refused(contents: list[bytes], missing: int) -> None:
    pairs = [(Cid.of(content), content) for content in contents]
    with pytest.raises(InvalidDataError):
        # Less than the last section, so that the cut is never at a boundary.
        find_blocks(write_car([pairs[0][0]], pairs)[: -min(missing, 36)], {pairs[-1][0]})


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_else(garbage: bytes) -> None:
    with pytest.raises(InvalidDataError):
        find_blocks(garbage, ())


@given(blocks, st.integers(0, 10_000), st.integers(1, 255))
def test_damage_raises_nothing_else(contents: list[bytes], where: int, flip: int) -> None:
    pairs = [(Cid.of(content), content) for content in contents]
    car = bytearray(write_car([pairs[0][0]], pairs))
    car[where % len(car)] ^= flip
    with contextlib.suppress(InvalidDataError):
        find_blocks(bytes(car), {cid for cid, _ in pairs})


def test_a_wanted_block_above_the_limit_is_refused() -> None:
    content = bytes(MAX_BLOCK + 1)
    car = write_car([Cid.of(content)], [(Cid.of(content), content)])
    with pytest.raises(InvalidDataError, match="block_too_big"):
        find_blocks(car, {Cid.of(content)})
    assert find_blocks(car, ()) == ((Cid.of(content),), {})
