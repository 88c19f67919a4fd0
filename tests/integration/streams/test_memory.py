"""A server whose memory is nearly used up: producers stop, everything else goes on."""

from contextlib import closing

import pytest

from rsky_pipeline.embedded import valkey
from rsky_pipeline.streams.append import CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.consumer import trim
from rsky_pipeline.streams.lag import server_memory
from tests import stores
from tests.consumers import GroupReader

LIMIT = 12 * 1024 * 1024


@pytest.mark.parametrize("size", [1_000, 60_000])
def test_producers_stop_before_the_server_is_full(size: int) -> None:
    program_options = ("--maxmemory", str(LIMIT))
    with stores.scratch_directory() as folder:
        program = valkey.prepare(stores.scratch_settings(folder), program_options)
        with (
            stores.running(program) as running,
            closing(connect(running.url, name="test")) as store,
        ):
            reader = GroupReader(store, "s", "g", "c")
            reader.ensure()
            batch, cursor = [Entry("s", b"event", b"x" * size)] * 5, None
            for number in range(10_000):
                move = CursorMove("cursor", cursor, str(number))
                result = append(store, batch, cursor=move)
                if result.status != "appended":
                    break
                cursor = str(number)
            assert (result.status, result.full_stream) == ("full", None)
            assert read_cursor(store, "cursor") == cursor
            memory = server_memory(store)
            assert memory.limit == LIMIT
            assert 0.88 < (memory.share or 0) < 1.0
            length = result.lengths["s"]

            # Reading, acknowledging, burying and trimming still work, and make room.
            taken = reader.read_new(length // 2, 0)
            done = reader.dead_letter(taken[0], reason="r", error="e", attempts=1)
            assert done
            assert reader.acknowledge([item.id for item in taken[1:]]) == len(taken) - 1
            trim(store, "s")
            assert append(store, batch, cursor=move).status == "appended"
            assert store.call("XLEN", "s") == length - len(taken) + len(batch)
