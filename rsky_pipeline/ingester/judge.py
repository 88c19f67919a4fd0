"""What may be written of a frame: decided in order, on what is known of its repo."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import trio

from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.frame import AccountMessage, CommitMessage, RepoOp, SyncMessage
from rsky_pipeline.atproto.syntax import tid_number
from rsky_pipeline.ingester.chain import Step, Update, follow, is_replay
from rsky_pipeline.ingester.commits import RepoConverter
from rsky_pipeline.ingester.convert import About, Claim, Converted
from rsky_pipeline.ingester.discovery import Discovery
from rsky_pipeline.ingester.proof import check_operations
from rsky_pipeline.ingester.relays import RelayBoard
from rsky_pipeline.ingester.repo_state import (
    DESYNCHRONIZED,
    RepoState,
    is_inactive,
    make_state,
    rev_of,
    with_activity,
)
from rsky_pipeline.ingester.resync import Resyncs
from rsky_pipeline.ingester.states import RepoStates
from rsky_pipeline.ingester.verify import Verdict
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.names import REPO_BACKFILL

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Memory:
    """What all relays share. It is forgotten as a whole when the writer drops what it holds."""

    states: RepoStates
    board: RelayBoard
    resyncs: Resyncs
    discovery: Discovery = field(default_factory=lambda: Discovery(0))

    def forget(self) -> None:
        """Forget what was not written, and with it everything."""
        self.states.forget()
        self.board.forget()
        self.resyncs.forget()


class Judge:
    """Decides about the frames of one relay."""

    def __init__(
        self,
        relay: str,
        converter: RepoConverter,
        memory: Memory,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._relay = relay
        self._converter = converter
        self._tally = converter.tally
        self._memory = memory
        self._clock = clock
        self._throttle = Throttled()

    @property
    def states(self) -> RepoStates:
        """The states of repos."""
        return self._memory.states

    def is_replay(self, message: CommitMessage | SyncMessage) -> bool:
        """Tell whether a commit was taken over before, and count it if so."""
        rev = tid_number(message.rev)
        return self._is_replay(message.did, rev, self.states.get(message.did))

    def judge(self, frame: Converted, verdict: Verdict | None) -> Converted:
        """Return what may be written of a frame; `verdict` is None where nothing was claimed.

        From here on its commit counts as taken over, so that it must be given to the writer.
        """
        about = frame.about
        if verdict is not None:
            self._tally.verdicts[verdict.value] += 1
        if about is None:
            return self._judge_news(frame)
        before = self.states.get(about.update.did)
        if self._is_replay(about.update.did, about.update.rev, before):
            return _emptied(frame)
        if verdict is not None and verdict is not Verdict.VALID:
            if verdict is Verdict.NO_ACCOUNT:
                self._note_stranger(about)
                return _emptied(frame)
            return self._put_off(_emptied(frame), about, verdict.value, about.ops)
        if not about.readable:
            return self._put_off(frame, about, about.reason or about.update.kind, about.ops)
        refusal = self._refusal(frame.claim)
        if refusal is not None:
            self._tally.errors[refusal] += 1
            state = make_state(about.update.rev, about.update.data, DESYNCHRONIZED)
            taken = self._taken_over(_emptied(frame), about, state)
            return self._put_off(taken, about, refusal, about.ops)
        step = follow(before, about.update)
        if step is None:
            return _emptied(frame)
        if step.broken == "unseen" and about.reason is None:
            return self._discover(frame, about, step)
        taken = self._taken_over(frame, about, step.state)
        reason = step.broken or about.reason
        if reason is None:
            return taken
        return self._put_off(taken, about, reason, about.ops if step.broken == "too_big" else ())

    def unknown(self, frame: Converted) -> Converted:
        """Return what may be written of a frame that nobody could judge: its repo is fetched."""
        about = frame.about
        if about is None:
            return frame
        return self._put_off(_emptied(frame), about, Verdict.UNVERIFIED.value, about.ops)

    def _note_stranger(self, about: About) -> None:
        held_back = self._throttle.allow("no_account")
        if held_back is not None:
            extra = {"host": self._relay, "did": about.update.did, "unlogged": held_back}
            _log.warning("left out a commit of an account that does not exist", extra=extra)

    def _discover(self, frame: Converted, about: About, step: Step) -> Converted:
        """Have a repo that was never seen before fetched as a whole, unless it has to wait."""
        discovery = self._memory.discovery
        if not discovery.enabled:
            state = make_state(about.update.rev, about.update.data)
            return self._taken_over(frame, about, state)
        if not discovery.admits(self._clock()):
            return frame  # not remembered, so that it is new again the next time
        entry = self._converter.resync(REPO_BACKFILL, about, "unseen", ())
        return _with(self._taken_over(frame, about, step.state), entry)

    def _note_activity(self, frame: Converted, did: str, active: bool) -> Converted:
        """Note whether an account is active; one that comes back may have changed meanwhile.

        Hosts say so when it changes. One that was active as far as we know has moved, or we were
        not told that it was away: what was to be fetched of it then was not to be had.
        """
        state = self.states.get(did)
        if state is None:
            return frame
        if is_inactive(state) == active:
            frame = frame._replace(state=self.states.set(did, with_activity(state, active)))
        if not active:
            return frame
        about = About(Update(did, rev_of(state)), "")
        return self._put_off(frame, about, "reactivated", ())

    def _judge_news(self, frame: Converted) -> Converted:
        did, news = frame.changed_did, frame.news
        if did is None or news is None:
            return frame
        if not self._memory.board.is_repeat(self._relay, did, news):
            active = news.active
            return frame if active is None else self._note_activity(frame, did, active)
        self._tally.replays += 1
        return _emptied(frame)

    def _is_replay(self, did: str, rev: int, before: RepoState | None) -> bool:
        if not is_replay(before, rev):
            return False
        self._tally.replays += 1
        self._memory.board.repeated(self._relay, did, rev, self._clock())
        return True

    def _refusal(self, claim: Claim | None) -> str | None:
        """Return why a commit's operations are not those that it signs."""
        if claim is None or claim.message is None or claim.contents is None:
            return None
        with self._tally.timed("operations"):
            try:
                check_operations(claim.message, claim.contents)
            except IncompleteTreeError:
                return "missing_node"
            except InvalidDataError as error:
                return error.reason if error.reason == "inversion" else "invalid_operation"
        return None

    def _taken_over(self, frame: Converted, about: About, state: RepoState) -> Converted:
        did, rev = about.update.did, about.update.rev
        self._tally.firsts += 1
        self._memory.board.first(self._relay, did, rev, self._clock())
        taken = self.states.set(did, state)
        return Converted(frame.seq, frame.time, frame.entries, frame.size, state=taken)

    def _put_off(
        self, frame: Converted, about: About, reason: str, unwritten: Sequence[RepoOp]
    ) -> Converted:
        """Have the repo fetched, besides what is written of the frame or instead of it."""
        deletes = any(op.cid is None for op in unwritten)
        stream = self._memory.resyncs.stream(about.update.did, deletes, self._clock())
        if stream is None:
            self._tally.resyncs_spared += 1
            return frame
        return _with(frame, self._converter.resync(stream, about, reason, unwritten))


def needs_state(item: object) -> TypeGuard[CommitMessage | SyncMessage | AccountMessage]:
    """Tell whether the state of its repo must be known before a frame is judged."""
    return type(item) in {CommitMessage, SyncMessage, AccountMessage}


def is_about_repo(item: object) -> TypeGuard[CommitMessage | SyncMessage]:
    """Tell whether a frame that was read is about the content of a repo."""
    return type(item) is CommitMessage or type(item) is SyncMessage


def _with(frame: Converted, entry: Entry) -> Converted:
    """Return a frame with one more entry."""
    return frame._replace(entries=[*frame.entries, entry], size=frame.size + len(entry.payload))


def _emptied(frame: Converted) -> Converted:
    """Return a frame of which nothing is written but its place in the stream."""
    return Converted(frame.seq, frame.time, [], 0)
