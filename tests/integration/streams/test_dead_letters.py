"""Dead letters: moved in one step, listed, tried again, dropped."""

from typing import Any

import pytest

from rsky_pipeline.streams.append import append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.dead_letters import (
    find_dead_letter,
    list_dead_letters,
    remove_dead_letters,
    retry_dead_letters,
)
from rsky_pipeline.streams.errors import StoreUnavailableError
from tests.integration.streams.support import (
    entries,
    ids,
    memory_full,
    own_pending,
    reader,
    stored,
    values,
)

FACTS: dict[str, Any] = {"reason": "bad", "error": "x" * 900, "attempts": 3}


def bury(store: Store, count: int) -> list[Delivery]:
    append(store, entries(count))
    own = reader(store)
    taken = own.read_new(count, 0)
    for delivery in taken:
        assert own.dead_letter(delivery, **FACTS)
    return taken


def test_a_dead_letter_keeps_the_entry_and_the_reason(store: Store) -> None:
    append(store, entries(2))
    own = reader(store)
    taken = own.read_new(10, 0)
    assert own.dead_letter(taken[0], **FACTS)
    assert not own.dead_letter(taken[0], **FACTS)
    (letter,) = list_dead_letters(store, "s")
    assert (letter.reason, letter.attempts, letter.source_id) == ("bad", 3, taken[0].id)
    assert len(letter.error) == 500
    assert letter.fields == {b"event": b"0"}
    assert ids(own_pending(own)) == [taken[1].id]
    assert list(stored(store)) == [1]


def test_an_entry_of_more_fields_than_a_script_can_take_is_cut(store: Store) -> None:
    fields = [text for number in range(20_000) for text in (f"field{number}", "x")]
    store.call("XADD", "s", "*", *fields)
    own = reader(store)
    (delivery,) = own.read_new(1, 0)
    assert own.dead_letter(delivery, **FACTS)
    (letter,) = list_dead_letters(store, "s")
    assert list(letter.fields) == [b"field%d" % number for number in range(1_000)]
    assert letter.error.startswith("19000 fields left out: xxx")
    assert ids(own_pending(own)) == []


def test_another_group_keeps_the_entry(store: Store) -> None:
    append(store, entries(1))
    own, other = reader(store), reader(store, "other")
    (delivery,) = own.read_new(1, 0)
    assert own.dead_letter(delivery, **FACTS)
    assert values(other.read_new(1, 0)) == [0]


def test_an_entry_without_its_body_leaves_a_trace(store: Store) -> None:
    append(store, entries(1))
    own = reader(store)
    (delivery,) = own.read_new(1, 0)
    store.call("XDEL", "s", delivery.id)
    assert own.dead_letter(delivery._replace(fields=None), **FACTS)
    (letter,) = list_dead_letters(store, "s")
    assert letter.fields == {}
    assert retry_dead_letters(store, "s", [letter.id]) == 0
    assert len(list_dead_letters(store, "s")) == 1


def test_a_stream_or_group_that_is_gone_is_no_error(store: Store) -> None:
    own = reader(store)
    delivery = Delivery("s", "1-1", {b"event": b"0"})
    store.call("XGROUP", "DESTROY", "s", "g")
    assert not own.dead_letter(delivery, **FACTS)
    store.call("DEL", "s")
    assert not own.dead_letter(delivery, **FACTS)
    assert list_dead_letters(store, "s") == []


def test_a_full_server_takes_dead_letters(store: Store) -> None:
    append(store, entries(1))
    own = reader(store)
    (delivery,) = own.read_new(1, 0)
    with memory_full(store):
        assert own.dead_letter(delivery, **FACTS)
        (letter,) = list_dead_letters(store, "s")
        with pytest.raises(StoreUnavailableError):
            retry_dead_letters(store, "s", [letter.id])
    assert len(list_dead_letters(store, "s")) == 1


def test_letters_are_listed_in_pages(store: Store) -> None:
    bury(store, 5)
    first = list_dead_letters(store, "s", count=3)
    rest = list_dead_letters(store, "s", after=first[-1].id, count=3)
    assert [letter.fields[b"event"] for letter in (*first, *rest)] == [b"0", b"1", b"2", b"3", b"4"]
    assert find_dead_letter(store, "s", first[1].id) == first[1]
    assert find_dead_letter(store, "s", "1-1") is None


def test_retrying_appends_the_original_and_removes_the_letter(store: Store) -> None:
    bury(store, 3)
    letters = list_dead_letters(store, "s")
    chosen = [letters[2].id, letters[0].id, letters[0].id, "1-1"]
    assert retry_dead_letters(store, "s", chosen) == 2
    assert [letter.id for letter in list_dead_letters(store, "s")] == [letters[1].id]
    assert [item.fields for item in reader(store).read_new(10, 0)] == [
        {b"event": b"2"},
        {b"event": b"0"},
    ]
    assert retry_dead_letters(store, "s", [letters[0].id]) == 0


def test_many_letters_are_retried(store: Store) -> None:
    bury(store, 250)
    every = [letter.id for letter in list_dead_letters(store, "s", count=1_000)]
    assert retry_dead_letters(store, "s", every) == 250
    assert list(stored(store)) == list(range(250))
    assert list_dead_letters(store, "s") == []


def test_a_letter_is_dropped(store: Store) -> None:
    bury(store, 2)
    letters = list_dead_letters(store, "s")
    assert remove_dead_letters(store, "s", [letters[0].id, "1-1"]) == 1
    assert remove_dead_letters(store, "s", []) == 0
    assert [letter.id for letter in list_dead_letters(store, "s")] == [letters[1].id]


def test_letters_of_the_original_services_are_understood(store: Store) -> None:
    store.call(
        "XADD", "s_dlq", "*", "repo", "{}", "reason", "max_retries_exceeded", "attempts", "3"
    )
    (letter,) = list_dead_letters(store, "s")
    assert (letter.reason, letter.attempts, letter.error) == ("max_retries_exceeded", 3, "")
    assert retry_dead_letters(store, "s", [letter.id]) == 1
    (delivery,) = reader(store).read_new(1, 0)
    assert delivery.fields == {b"repo": b"{}"}


def test_a_letter_of_more_fields_than_a_script_can_take_stays_alone(store: Store) -> None:
    fields = [text for number in range(20_000) for text in (f"field{number}", "x")]
    store.call("XADD", "s_dlq", "1-1", *fields)
    bury(store, 2)
    every = [letter.id for letter in list_dead_letters(store, "s")]
    assert retry_dead_letters(store, "s", every) == 2
    assert [letter.id for letter in list_dead_letters(store, "s")] == ["1-1"]
    assert list(stored(store)) == [0, 1]


def test_foreign_letters_do_not_stop_the_list(store: Store) -> None:
    store.call("XADD", "s_dlq", "*", "attempts", "many", "error", b"\xff")
    (letter,) = list_dead_letters(store, "s")
    assert (letter.reason, letter.attempts, letter.error) == ("unknown", 0, "�")
