"""Bad entries are found by halving; everything else is applied, in order."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.database import isolation as module
from rsky_pipeline.database.errors import (
    BadDataError,
    DatabaseError,
    DatabaseUnavailableError,
    TransactionConflictError,
)
from rsky_pipeline.database.isolation import (
    SYSTEMIC,
    Isolation,
    apply_isolated,
    retry_conflicts,
)


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


def test_callers_that_lose_nothing_get_every_entry_back() -> None:
    store = Store(range(50), DatabaseError)
    assert len(apply_isolated(range(50), store.apply)) == 50
    assert apply_isolated([], store.apply) == []


def isolation() -> Isolation[int]:
    """Entries have an owner for each hundred."""
    return Isolation(lambda entry: entry // 100, 600.0)


@pytest.mark.parametrize("error", [TypeError, DatabaseError])
def test_a_failure_that_hits_everything_is_raised_and_buries_nothing(
    error: Callable[[str], Exception],
) -> None:
    everything = range(95, 95 + SYSTEMIC)
    with pytest.raises(DatabaseError, match="entry 104") as raised:
        isolation().apply([everything], Store(everything, error).apply)
    assert raised.value.retryable


def test_entries_of_one_owner_are_culprits_however_many_they_are() -> None:
    one = isolation()
    for _ in range(3):
        assert len(one.apply([range(50)], Store(range(50), DatabaseError).apply)) == 50
    with pytest.raises(DatabaseError):  # one entry of another owner shows that it is not theirs
        one.apply([[100]], Store([100], DatabaseError).apply)


def test_a_few_bad_entries_are_culprits_even_when_they_are_all_there_is() -> None:
    few = [99, 100]
    assert len(isolation().apply([few], Store(few, TypeError).apply)) == 2


def test_bad_data_is_never_systemic() -> None:
    everything = range(0, 5_000, 100)
    one = isolation()
    for _ in range(3):
        assert len(one.apply([everything], Store(everything).apply)) == 50

    def apply(entries: Sequence[int]) -> None:
        """Refuse all values but those of one entry, which fails for another reason."""
        raise TypeError if list(entries) == [100] else BadDataError("x")

    assert len(one.apply([everything], apply)) == 50


def test_few_entries_at_a_time_count_together_until_one_is_applied() -> None:
    one, store = isolation(), Store(range(10_000), DatabaseError)
    for number in range(SYSTEMIC - 1):
        assert len(one.apply([[number * 100]], store.apply)) == 1
    for _ in range(3):
        with pytest.raises(DatabaseError):
            one.apply([[9_000]], store.apply)
    assert [culprit.entry for culprit in one.apply([[10_000], [9_000]], store.apply)] == [9_000]
    assert len(one.apply([[9_100]], store.apply)) == 1


def test_a_batch_is_given_up_as_a_whole_when_it_has_waited_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where its entries do not share their transactions; the next batch waits anew."""
    now = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    one, store = isolation(), Store(range(10_000), DatabaseError)
    groups = [[number * 100] for number in range(SYSTEMIC)]
    for batch in (groups, groups):
        for seconds in (0.0, 599.0):
            now += seconds
            with pytest.raises(DatabaseError):
                one.apply(batch, store.apply)
        now += 2.0
        assert len(one.apply(batch, store.apply)) == SYSTEMIC


def test_the_wait_begins_anew_after_an_error_of_another_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    one, everything = isolation(), range(95, 110)
    failing, gone = Store(everything, TypeError), Store(everything, DatabaseUnavailableError)
    for store in (failing, gone, failing):
        with pytest.raises(DatabaseError):
            one.apply([everything], store.apply)
        now += 500.0


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def conflicts(one: Isolation[int], entries: Sequence[int], store: Store, clock: Clock) -> int:
    """Apply until it works, a minute between tries; return how many tries were in vain."""
    for tries in range(100):
        try:
            one.found = one.apply([entries], store.apply)  # type: ignore[attr-defined]
        except TransactionConflictError:
            clock.now += 60.0
        else:
            return tries
    raise AssertionError("it goes on for ever")


def test_an_entry_whose_statements_always_conflict_is_a_culprit_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, clock = isolation(), Clock(monkeypatch)
    store = Store([5], lambda text: TransactionConflictError(text, sqlstate="57014"))
    tries = conflicts(one, range(200), store, clock)
    assert 10 < tries < 30
    (culprit,) = one.found  # type: ignore[attr-defined]
    assert (culprit.entry, culprit.reason, culprit.message) == (5, "internal_error", "entry 5")
    assert set(store.applied) == set(range(200)) - {5}
    with pytest.raises(TransactionConflictError):  # the next batch is waited for anew
        one.apply([[5, 6]], store.apply)


def test_a_lock_on_a_whole_table_is_waited_for_and_buries_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, clock = isolation(), Clock(monkeypatch)
    store = Store(range(0, 200, 2), TransactionConflictError)
    for _ in range(100):
        with pytest.raises(TransactionConflictError):
            one.apply([range(200)], store.apply)
        clock.now += 60.0
    store.bad.clear()
    assert one.apply([range(200)], store.apply) == []


def test_a_statement_that_exceeded_its_time_is_not_run_again_at_once() -> None:
    calls = 0

    def transaction() -> None:
        nonlocal calls
        calls += 1
        raise TransactionConflictError("too long", sqlstate="57014")

    with pytest.raises(TransactionConflictError):
        retry_conflicts(transaction, 5)
    assert calls == 1


def test_a_transaction_that_conflicts_is_tried_so_many_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONFLICT_PAUSE_SECONDS", 0.0)
    tries = 0

    def transaction(good: int) -> str:
        nonlocal tries
        tries += 1
        if tries < good:
            raise TransactionConflictError("another one was first")
        return "done"

    assert retry_conflicts(lambda: transaction(3), 3) == "done"
    tries = 0
    with pytest.raises(TransactionConflictError):
        retry_conflicts(lambda: transaction(9), 3)
    assert tries == 3
