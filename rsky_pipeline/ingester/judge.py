"""What may be written of a frame: decided in order, on what is known of its repo."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import trio

from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData
from rsky_pipeline.atproto.frame import CommitMessage, RepoOp, SyncMessage
from rsky_pipeline.atproto.syntax import tid_number
from rsky_pipeline.ingester.chain import follow, is_replay
from rsky_pipeline.ingester.convert import About, Claim, Converted, Converter
from rsky_pipeline.ingester.proof import check_operations
from rsky_pipeline.ingester.relays import RelayBoard
from rsky_pipeline.ingester.repo_state import DESYNCHRONIZED, RepoState, make_state
from rsky_pipeline.ingester.resync import Resyncs
from rsky_pipeline.ingester.states import RepoStates
from rsky_pipeline.ingester.verify import Verdict


@dataclass(slots=True)
class Memory:
    """What all relays share. It is forgotten as a whole when the writer drops what it holds."""

    states: RepoStates
    board: RelayBoard
    resyncs: Resyncs = field(default_factory=Resyncs)

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
        converter: Converter,
        memory: Memory,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._relay = relay
        self._converter = converter
        self._tally = converter.tally
        self._memory = memory
        self._clock = clock

    @property
    def states(self) -> RepoStates:
        """The states of repos."""
        return self._memory.states

    def is_replay(self, message: CommitMessage | SyncMessage) -> bool:
        """Tell whether a commit was taken over before, and count it if so."""
        return self._is_replay(message.did, tid_number(message.rev))

    def judge(self, frame: Converted, verdict: Verdict | None) -> Converted:
        """Return what may be written of a frame; `verdict` is None where nothing was claimed.

        From here on its commit counts as taken over, so that it must be given to the writer.
        """
        about = frame.about
        if verdict is not None:
            self._tally.verdicts[verdict.value] += 1
        if about is None:
            return self._judge_news(frame)
        if self._is_replay(about.update.did, about.update.rev):
            return _emptied(frame)
        if verdict is not None and verdict is not Verdict.VALID:
            if verdict is Verdict.NO_ACCOUNT:
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
        step = follow(self.states.get(about.update.did), about.update)
        if step is None:
            return _emptied(frame)
        taken = self._taken_over(frame, about, step.state)
        reason = step.broken or about.reason
        if reason is None:
            return taken
        return self._put_off(taken, about, reason, about.ops if step.broken == "too_big" else ())

    def _judge_news(self, frame: Converted) -> Converted:
        did, news = frame.changed_did, frame.news
        if did is None or news is None or not self._memory.board.is_repeat(self._relay, did, news):
            return frame
        self._tally.replays += 1
        return _emptied(frame)

    def _is_replay(self, did: str, rev: int) -> bool:
        if not is_replay(self.states.get(did), rev):
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
            except IncompleteTree:
                return "missing_node"
            except InvalidData as error:
                return error.reason if error.reason == "inversion" else "invalid_operation"
        return None

    def _taken_over(self, frame: Converted, about: About, state: RepoState) -> Converted:
        did, rev = about.update.did, about.update.rev
        self._tally.firsts += 1
        self._memory.board.first(self._relay, did, rev, self._clock())
        return frame._replace(states=self.states.set(did, state))

    def _put_off(
        self, frame: Converted, about: About, reason: str, unwritten: Sequence[RepoOp]
    ) -> Converted:
        """Have the repo fetched, besides what is written of the frame or instead of it."""
        deletes = any(op.cid is None for op in unwritten)
        stream = self._memory.resyncs.stream(about.update.did, deletes, self._clock())
        if stream is None:
            self._tally.resyncs_spared += 1
            return frame
        entry = self._converter.resync(stream, about, reason, unwritten)
        return frame._replace(entries=[*frame.entries, entry], size=frame.size + len(entry.payload))


def is_about_repo(item: object) -> TypeGuard[CommitMessage | SyncMessage]:
    """Tell whether a frame that was read is about the content of a repo."""
    return type(item) is CommitMessage or type(item) is SyncMessage


def _emptied(frame: Converted) -> Converted:
    """Return a frame of which nothing is written but its place in the stream."""
    return Converted(frame.seq, frame.time, [], 0)
