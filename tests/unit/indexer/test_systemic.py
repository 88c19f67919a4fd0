"""What fails for every entry is waited for, also where few entries come at a time."""

import time
from typing import Any

import pytest

from rsky_pipeline.database.errors import BadDataError, DatabaseError
from rsky_pipeline.database.isolation import SYSTEMIC, SYSTEMIC_SECONDS
from rsky_pipeline.indexer.core import apply as module
from rsky_pipeline.indexer.core.apply import Applier
from rsky_pipeline.indexer.core.batch import Applied, BatchItem, EntryBatch
from rsky_pipeline.indexer.core.entries import Reading
from rsky_pipeline.streams.consumer import Delivery

NOTHING: Any = None  # no database: `apply_batch` is ours


def batch(number: int, size: int = 1) -> EntryBatch:
    items = [
        BatchItem(
            Delivery("firehose_live", f"{number}-{place}", {b"event": b""}),
            Reading("identity", f"did:plc:{number}x{place}", ""),
        )
        for place in range(size)
    ]
    return EntryBatch("firehose_live", items)


class Failing:
    """Takes the place of `apply_batch`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.error: Exception | None = error
        monkeypatch.setattr(module, "apply_batch", self)

    def __call__(self, *_: object, **__: object) -> Applied:
        if self.error is not None:
            raise self.error
        return Applied()


@pytest.mark.parametrize("error", [DatabaseError("x", sqlstate="XX000"), RecursionError("deep")])
def test_entries_that_come_one_by_one_are_not_all_given_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing, applier, now = Failing(monkeypatch, error), Applier({}, 5), 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for number in range(SYSTEMIC - 1):
        assert len(applier.apply(NOTHING, batch(number)).refused) == 1
    for _ in range(3):
        with pytest.raises(DatabaseError) as raised:
            applier.apply(NOTHING, batch(100))
        assert raised.value.retryable
    now += SYSTEMIC_SECONDS + 1
    assert len(applier.apply(NOTHING, batch(100)).refused) == 1
    with pytest.raises(DatabaseError):
        applier.apply(NOTHING, batch(101))
    failing.error = None
    assert applier.apply(NOTHING, batch(101)).refused == []
    failing.error = error
    assert len(applier.apply(NOTHING, batch(102)).refused) == 1


def test_a_defect_that_hits_all_of_a_batch_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, TypeError("a defect"))
    with pytest.raises(DatabaseError, match="TypeError: a defect"):
        Applier({}, 5).apply(NOTHING, batch(1, SYSTEMIC))


def test_values_that_cannot_be_stored_are_never_systemic(monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, BadDataError("x", sqlstate="22021"))
    applier = Applier({}, 5)
    assert [len(applier.apply(NOTHING, batch(n, 3)).refused) for n in range(9)] == [3] * 9
