"""Whether a commit follows on what is known of its repo. Pure.

Source: https://atproto.com/specs/sync#firehose-validation-best-practices. A commit that was
verified is always the new baseline, whether it follows or not: what lies between is fetched, and
whether the next one follows on it is a question of its own.
"""

from typing import Literal, NamedTuple

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.ingester.repo_state import (
    DESYNCHRONIZED,
    RepoState,
    has_data,
    make_state,
    rev_of,
)

FUTURE_SECONDS = 300.0  # a rev may be ahead of our clock by so much, as other programs have it

Break = Literal["broken_chain", "sync", "too_big", "unseen"]


class Update(NamedTuple):
    """What a message says of its repo. Revs are numbers (`syntax.tid_number`)."""

    did: str
    rev: int
    since: int | None = None
    prev_data: Cid | None = None  # None in commits of before Sync 1.1
    data: Cid | None = None  # the tree's root; None where the commit object was not read
    kind: Literal["commit", "sync", "too_big"] = "commit"


class Step(NamedTuple):
    """What an update means: the repo's next state, and why its content must be fetched."""

    state: RepoState
    broken: Break | None


def is_replay(state: RepoState | None, rev: int) -> bool:
    """Tell whether a commit of this rev, or a later one, was taken over before."""
    return state is not None and rev <= rev_of(state)


def is_future(rev: int, now: float) -> bool:
    """Tell whether a rev is from a time after `now`, in seconds since 1970, beyond clock skew.

    Taken over once, such a rev would make all true commits replays.
    """
    return (rev >> 10) / 1e6 > now + FUTURE_SECONDS


def follow(state: RepoState | None, update: Update) -> Step | None:
    """Return the step from a state, None if unknown, to a verified update; None for a replay."""
    if is_replay(state, update.rev):
        return None
    broken = _break(state, update)
    flags = DESYNCHRONIZED if broken else 0
    return Step(make_state(update.rev, update.data, flags), broken)


def _break(state: RepoState | None, update: Update) -> Break | None:
    if update.kind == "too_big":
        return "too_big"
    if update.kind == "sync":
        same = state is not None and update.data is not None and has_data(state, update.data)
        return None if same else "sync"
    if state is None:
        # A repo's first commit follows on nothing; of any other one the beginning is missing.
        return None if update.since is None else "unseen"
    if update.since != rev_of(state):
        return "broken_chain"
    if update.prev_data is not None and has_data(state, update.prev_data) is False:
        return "broken_chain"
    return None
