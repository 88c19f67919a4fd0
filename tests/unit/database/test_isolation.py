"""Bad entries are found by halving; everything else is applied, in order."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.database.errors import (
    BadDataError,
    DatabaseError,
    DatabaseUnavailableError,
    TransactionConflictError,
)
from rsky_pipeline.database.isolation import SYSTEMIC, apply_isolated


class Store:
    """Applies all of a batch or nothing, as a transaction does."""

    def __init__(
        self, bad: Sequence[int], error: Callable[[str], Exception] = BadDataError
    ) -> None:
        self.bad = set(bad)
        self.error = error
        self.applied: list[int] = []
        self.calls = 0

    def apply(self, entries: Sequence[int]) -> None:
        self.calls += 1
        for entry in entries:
            if entry in self.bad:
                raise self.error(f"entry {entry}")
        self.applied += entries


@given(bad=st.sets(st.integers(0, 199), max_size=6))
def test_all_others_are_applied_once_and_in_order(bad: set[int]) -> None:
    store = Store(list(bad))
    culprits = apply_isolated(range(200), store.apply)
    assert [culprit.entry for culprit in culprits] == sorted(bad)
    assert {culprit.reason for culprit in culprits} <= {"bad_data"}
    assert store.applied == [number for number in range(200) if number not in bad]
    assert store.calls <= 1 + len(bad) * 2 * 8


def test_a_failure_of_our_own_code_is_isolated_too() -> None:
    store = Store([5], KeyError)
    (culprit,) = apply_isolated(range(20), store.apply)
    assert (culprit.entry, culprit.reason) == (5, "internal_error")
    assert culprit.message == "KeyError: 'entry 5'"


@pytest.mark.parametrize("error", [DatabaseUnavailableError, TransactionConflictError])
def test_what_is_not_about_the_data_is_raised(error: type[Exception]) -> None:
    store = Store([5], error)
    with pytest.raises(error):
        apply_isolated(range(20), store.apply)
    assert store.applied == []


@pytest.mark.parametrize("code", ["21000", "XX000", "P0001", "42804", "0A000", None])
def test_a_refused_statement_is_isolated_whatever_its_class(code: str | None) -> None:
    store = Store([5], lambda text: DatabaseError(text, sqlstate=code, statement="INSERT INTO x"))
    (culprit,) = apply_isolated(range(20), store.apply)
    assert (culprit.entry, culprit.reason) == (5, "internal_error")
    assert culprit.message == "entry 5, in: INSERT INTO x"
    assert store.applied == [number for number in range(20) if number != 5]


@pytest.mark.parametrize("code", ["42501", "57P04", "28000", "3D000", "26000", "25006"])
def test_errors_of_the_server_are_raised(code: str) -> None:
    store = Store([5], lambda text: DatabaseError(text, sqlstate=code))
    with pytest.raises(DatabaseError):
        apply_isolated(range(20), store.apply)


def test_an_entry_alone_is_tried_twice() -> None:
    store = Store([0], DatabaseError)
    assert len(apply_isolated([0], store.apply)) == 1
    assert store.calls == 2


def test_a_failure_that_hits_everything_is_raised_and_buries_nothing() -> None:
    store = Store(range(SYSTEMIC), TypeError)
    with pytest.raises(TypeError):
        apply_isolated(range(SYSTEMIC), store.apply)


def test_entries_of_one_source_are_culprits_however_many_they_are() -> None:
    store = Store(range(50), DatabaseError)
    culprits = apply_isolated(range(50), store.apply, source=lambda _: "did:plc:a")
    assert len(culprits) == 50


def test_who_has_waited_long_enough_blames_all() -> None:
    store = Store(range(50), DatabaseError)
    assert len(apply_isolated(range(50), store.apply, blame_all=True)) == 50


def test_a_few_bad_entries_are_culprits_even_when_they_are_all_there_is() -> None:
    store = Store([0, 1], TypeError)
    assert len(apply_isolated([0, 1], store.apply)) == 2
    everything = Store(range(50), BadDataError)
    assert len(apply_isolated(range(50), everything.apply)) == 50


def test_few_entries_at_a_time_are_systemic_together_with_those_before() -> None:
    store = Store(range(50), DatabaseError)
    before = [f"did:plc:{number}" for number in range(SYSTEMIC - 2)]
    assert len(apply_isolated([0], store.apply, earlier=before)) == 1
    with pytest.raises(DatabaseError):
        apply_isolated([0, 1], store.apply, earlier=before)
    alone = {"source": lambda _: "did:plc:a", "earlier": ["did:plc:a"] * SYSTEMIC}
    assert len(apply_isolated([0, 1], store.apply, **alone)) == 2  # type: ignore[arg-type]
