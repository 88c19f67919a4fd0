"""Blocks of repos that do not fit into memory, on a disk that has no room for them."""

from contextlib import closing
from pathlib import Path

import pytest

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.repos.blocks import Blocks, Budget, DiskFullError, RepoTooBigError
from tests.small_disk import small_disk

BLOCK = bytes(1_000)


def block(number: int) -> tuple[Cid, bytes]:
    return Cid(b"\x01\x71\x12\x20" + number.to_bytes(32, "big")), BLOCK


def spilled(folder: Path) -> tuple[Blocks, Budget]:
    disk = Budget(2**30)
    blocks = Blocks(Budget(2**20), disk, folder)
    blocks.add([block(1)])
    return blocks, disk


def test_a_disk_without_inodes_is_full() -> None:
    with small_disk(inodes=20) as small:
        small.use_up_inodes()
        blocks, disk = spilled(small.folder / "backfill")
        with closing(blocks):
            for _ in range(2):
                with pytest.raises(DiskFullError, match="No space left on device"):
                    blocks.move_to_disk()
            assert disk.used == 0
            assert blocks.get(block(1)[0]) == BLOCK
            small.make_room()
            blocks.move_to_disk()
            assert blocks.get(block(1)[0]) == BLOCK


@pytest.mark.parametrize("size", ["300k", "1100k", "2m", "3m", "5m"])
def test_a_disk_without_room_ends_no_worker(size: str) -> None:
    """Neither for blocks nor for their index, a mapping: writing to it would be a SIGBUS."""
    with small_disk(size=size) as small:
        blocks, disk = spilled(small.folder / "backfill")

        def fill() -> None:
            blocks.move_to_disk()
            for number in range(2, 100_000):
                blocks.add([block(number)])

        with closing(blocks), pytest.raises(DiskFullError, match="No space left on device"):
            fill()
        assert disk.used == 0


def test_a_folder_that_cannot_be_made_is_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocks, _ = spilled(tmp_path / "file" / "backfill")
    with closing(blocks), pytest.raises(DiskFullError, match="cannot be written"):
        blocks.move_to_disk()


def test_an_index_grows_with_its_blocks(tmp_path: Path) -> None:
    blocks, disk = spilled(tmp_path)
    with closing(blocks):
        blocks.move_to_disk()
        blocks.add((cid, b"%d" % number) for number in range(70_000) for cid, _ in [block(number)])
        assert len(blocks) == 70_000
        assert blocks.get(block(69_999)[0]) == b"69999"
        assert blocks.get(block(70_000)[0]) is None
    assert disk.used == 0


def test_a_repo_waits_for_what_others_use_and_fails_where_it_would_not_fit_alone(
    tmp_path: Path,
) -> None:
    memory, disk = Budget(2**20), Budget(3 * len(BLOCK))
    first, second = Blocks(memory, disk, tmp_path), Blocks(memory, disk, tmp_path)
    with closing(first), closing(second):
        first.add([block(1)])
        first.move_to_disk()
        second.add([block(2), block(3)])
        with pytest.raises(DiskFullError, match="other repos"):
            second.move_to_disk()
        with pytest.raises(RepoTooBigError, match="backfiller_disk_mb"):
            first.add([block(4), block(5)])
        first.close()
        second.move_to_disk()
        assert second.get(block(3)[0]) == BLOCK
    assert disk.used == 0
