"""Trying again what failed: dead letters, what waits, and what the table says was given up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations import dead_letters
from rsky_pipeline.operations.backfill.adding import Adder, did_of
from rsky_pipeline.streams import names
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import DeadLetter
from rsky_pipeline.streams.names import REPO_STREAMS
from rsky_pipeline.streams.repo_job import REPO_FIELD
from rsky_pipeline.streams.waiting import all_waiting, hurry_waiting


@dataclass(slots=True)
class RetriedRepos:
    """How many repos are tried again, and where they were."""

    letters: int = 0
    waiting: int = 0
    given_up: int = 0  # by the table alone

    @property
    def total(self) -> int:
        """All of them."""
        return self.letters + self.waiting + self.given_up


def retry(
    store: Store,
    settings: Settings,
    adder: Adder,
    given_up: Sequence[str],
    *,
    reason: str | None,
    dids: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> RetriedRepos:
    """Put dead letters back, let what waits be due, and queue `given_up` accounts.

    `reason` and `dids` choose among dead letters; what waits is chosen by name only. Raises Full.
    """
    done, wanted = RetriedRepos(), frozenset(dids)
    retried: set[str] = set()

    def chosen(stream: str) -> Iterator[DeadLetter]:
        for letter in dead_letters.select(store, stream, reason):
            did = did_of(letter.fields.get(REPO_FIELD, b""))
            if not wanted or did in wanted:
                retried.add(did)
                yield letter

    for stream in REPO_STREAMS:
        buried = names.dead_letters(stream)
        done.letters += dead_letters.retry(store, buried, chosen(buried), settings, tell).retried
    if wanted:
        waiting = [each for each in all_waiting(store) if did_of(each.payload) in wanted]
        done.waiting = hurry_waiting(store, waiting)
        retried.update(did_of(each.payload) for each in waiting)
    before = adder.added.queued
    adder.add(did for did in given_up if did not in retried)
    done.given_up = adder.added.queued - before
    return done
