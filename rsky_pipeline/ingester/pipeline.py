"""The algorithm of the ingester: from the frames of a relay to entries of streams.

`FrameIntake.take` runs for all frames that the socket gave at once; `Admission.admit` decides about
one frame when its turn has come, in the order of the stream:

    take    decode (frames) -> known state of each repo (states) -> replay? then read no further
            -> account or host blocked? then read no further
            -> reorder buffer, until all frames before it are decided; meanwhile many in a thread:
            blocks, records, commit object, signature, operations (`compiled.prove`), or in Python
            those that it leaves over (convert), but for the operations
    admit   replay? -> signature good? -> blocks readable? -> operations lead back to prevData
            from data? (validation: MST inversion, unless proven) -> chain: follows on the known
            state? -> write, or resync

Three things rest on this order.

- A state is set when its commit is admitted, not when the commit is stored: the next commit of the
  repo may come before that. This is safe since the writer stores both in one step and in order,
  and drops all states with the commits that it has to drop (`SharedState.dropped`).
- A replay is decided in `admit`, since two relays may have the same commit in their reorder buffers
  at once, and only the state tells which is first. `take` asks the same question early because
  states only rise: a replay then is a replay for ever, and reading its blocks would be for nothing.
  With two relays that is half of all frames.
- Nothing of a commit counts before its signature is good. Else a forged commit with a high rev
  would make all true commits replays. A commit that is signed and has the wrong operations is not
  written, but is the baseline of the next one: the repo is fetched, and only once.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import trio

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    InfoMessage,
    Message,
    RepoOp,
    SyncMessage,
)
from rsky_pipeline.atproto.syntax import tid_number, tid_text
from rsky_pipeline.configuration.selection import BlockKind, Selection
from rsky_pipeline.ingester.clock import ClockWatch
from rsky_pipeline.ingester.commits.convert import MAX_FRAME_OUTPUT, Found, RepoConverter
from rsky_pipeline.ingester.commits.homes import AccountHomes
from rsky_pipeline.ingester.commits.relays import AccountUpdate, RelayDedup
from rsky_pipeline.ingester.commits.resync import (
    UNPROVEN_BURST,
    UNPROVEN_PER_MINUTE,
    Discovery,
    Rate,
    Resyncs,
)
from rsky_pipeline.ingester.commits.signatures import SignatureStatus, SignatureVerifier
from rsky_pipeline.ingester.commits.states import (
    DESYNCHRONIZED,
    OWED,
    RepoState,
    RepoStates,
    is_inactive,
    make_state,
    with_activity,
    with_flag,
)
from rsky_pipeline.ingester.commits.validation import (
    RepoUpdate,
    check_operations,
    follow,
    is_replay,
)
from rsky_pipeline.ingester.frames import MAX_TIME, FrameReader, PendingFrame
from rsky_pipeline.ingester.sequence import GapWatch, SeqGate
from rsky_pipeline.ingester.writer import FrameSink
from rsky_pipeline.runtime.errors import described
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.runtime.threads import in_thread
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.gap import Gap
from rsky_pipeline.streams.names import REPO_BACKFILL
from rsky_pipeline.streams.repo_job import FetchReason

_log = logging.getLogger(__name__)

_UPDATES = (CommitMessage, SyncMessage)
_WITH_STATE = (*_UPDATES, AccountMessage)
_BATCH_FRAMES = 64  # between which other tasks run
STRANGERS_PER_MINUTE = 300  # commits of accounts that the directory does not know
_WORTH_A_THREAD = 16  # signatures; a hop costs as much as two to six
_STEPS = ("blocks", "operations", "signature")  # of the seconds of `compiled.prove`


@dataclass(slots=True)
class SharedState:
    """State that all relays share. It rests on frames that may not be written yet."""

    states: RepoStates
    dedup: RelayDedup
    resyncs: Resyncs
    discovery: Discovery = field(default_factory=lambda: Discovery(0))
    strangers: Discovery = field(default_factory=lambda: Discovery(STRANGERS_PER_MINUTE))
    selection: Selection = field(default_factory=Selection)
    # The host of an account, empty where its document is not at hand: nobody is asked for it.
    known_host: Callable[[str], str] = lambda did: ""

    def block_of(self, did: str) -> BlockKind | None:
        """Return the kind of the block that an account is under; None for none."""
        selection = self.selection
        if not selection.accounts and not selection.hosts:
            return None
        return selection.left_out(did, host=self.known_host(did) if selection.hosts else "")

    def dropped(self) -> None:
        """Forget all: it has dropped commits as taken over, which their hosts send again."""
        self.states.forget()
        self.dedup.forget()
        self.resyncs.forget()


class Undecided(NamedTuple):
    """A frame whose blocks are to be read, or whose signature alone is to be checked."""

    frame: PendingFrame
    raw: bytes
    key: PublicKey | None  # of its account, where it is known
    commit: Commit | None  # None where it is still to be read


class Checked(NamedTuple):
    """The results of checking many frames, and the seconds that each of _STEPS took."""

    found: list[Found | None]
    good: list[bool]  # signatures
    seconds: Sequence[float]


class FrameIntake:
    """The frames of one connection to a relay, on their way to the writer.

    Frames leave in the order in which they came, while signatures are checked in a thread and any
    number of lookups run at once. The nursery is the connection's: frames that were not decided
    when it ends are read again from the cursor.
    """

    def __init__(
        self,
        converter: RepoConverter,
        sink: FrameSink,
        gate: SeqGate,
        nursery: trio.Nursery,
        verifier: SignatureVerifier,
        admission: "Admission",
        gaps: GapWatch,
        homes: AccountHomes | None = None,
        again_until: int = -1,
        clock: ClockWatch | None = None,
    ) -> None:
        """`homes` decides which account events are heard; without it, all are. Commits up to the
        number `again_until` are written though they were taken over before: the database has lost
        them (`streams.marks`)."""
        self._converter = converter
        self._homes = homes
        self._again_until = again_until
        self._clock = clock or ClockWatch()
        self._reader = FrameReader(converter, gate)
        self._sink = sink
        self._nursery = nursery
        self._verifier = verifier
        self._admission = admission
        self._gaps = gaps
        self._covered = gate.last  # the number of the last frame before those to come
        self._gap_entries: list[Entry] = []  # appended with the next frame that leaves
        self._buffer = ReorderBuffer()
        self._undecided: list[Undecided] = []
        self._checking = trio.CapacityLimiter(os.cpu_count() or 1)
        self._boundary = converter.boundary
        self._room = trio.Event()

    async def take(self, messages: Sequence[bytes]) -> None:
        """Take frames as they came from the socket, then wait while too many are undecided.

        Raises StoreUnavailableError and StoreRejectedError when the states of their repos cannot be
        read, ClockError when our clock is wrong. The frames are lost then, and must be read again
        from the cursor.
        """
        frames = self._reader.read(messages)
        await self._clock.check([message for message, _, _ in frames])
        dids = [message.did for message, _, _ in frames if isinstance(message, _WITH_STATE)]
        dids += [
            message.update.did
            for message, _, _ in frames
            if isinstance(message, PendingFrame) and message.update is not None
        ]
        await self._admission.states.prefetch(dids)
        for start in range(0, len(frames), _BATCH_FRAMES):
            if start:
                await trio.lowlevel.checkpoint()
            for frame in frames[start : start + _BATCH_FRAMES]:
                self._begin(*frame)
            self._check()
            self._pass_on()
        while self._buffer.full:
            self._room = trio.Event()
            await self._room.wait()

    def _begin(self, message: Message | PendingFrame, raw: bytes, covered: int | None) -> None:
        """Convert a frame unless it is a replay, and put it into the reorder buffer."""
        again = covered is not None and covered <= self._again_until
        try:
            if covered is not None and covered != self._covered:
                self._covered = covered
                gap = self._gaps.observe(covered, getattr(message, "time", None))
                if gap is not None:
                    self._note_gap(gap)
            if isinstance(message, _UPDATES):
                rev = tid_number(message.rev)
                if not again and is_replay(self._admission.states.get(message.did), rev):
                    self._admission.note_replay(message.did, rev)
                    frame = PendingFrame(covered, message.time[:MAX_TIME], [], 0)
                elif (kind := self._admission.block_of(message.did)) is not None:
                    frame = PendingFrame(covered, message.time[:MAX_TIME], [], 0)
                    self._leave_out(frame, kind)
                elif isinstance(message, CommitMessage):
                    frame = self._converter.begin_commit(message, raw, rev)
                else:
                    frame = self._converter.convert_sync(message, raw, rev)
            elif isinstance(message, PendingFrame):  # an unreadable one
                frame = message
                if frame.update is not None:
                    self._leave_out(frame, self._admission.block_of(frame.update.did))
            else:
                frame = self._convert_other(message, raw)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            frame = self._converter.failed(raw, error)
        frame.seq, frame.again = covered, again
        update, unread = frame.update, frame.unread
        if unread is not None:
            did, commit = unread.message.did, None
        elif update is not None and update.proof is not None:
            did, commit = update.did, update.proof.commit
        else:
            self._buffer.add(frame)
            return
        key = None
        try:
            if self._converter.proves:
                key = self._verifier.known_key(did)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            frame.status = self._unverified(did, error)
        frame.waits = True
        self._undecided.append(Undecided(frame, raw, key, commit))
        self._buffer.add(frame, len(raw))  # which it refers to until then

    def _convert_other(self, message: Message, raw: bytes) -> PendingFrame:
        """Convert a message that is not about a commit."""
        frame = self._converter.convert_message(message, raw)
        if frame.account is not None:
            kind = self._admission.block_of(frame.account.did)  # by the document of before
            self._verifier.forget(frame.account.did)
            if isinstance(message, IdentityMessage):
                self._leave_out(frame, kind)
            else:  # the indexer hides and purges rows of a blocked account like those of others
                self._find_home(frame, frame.account)
        if isinstance(message, InfoMessage):
            self._gaps.outdated |= message.name == "OutdatedCursor"
        return frame

    def _find_home(self, frame: PendingFrame, account: AccountUpdate) -> None:
        """Have an account event wait until it is known whether its host may send it."""
        homes = self._homes
        if homes is not None and account.active is not None and not homes.hears_all:
            frame.waits = True
            self._nursery.start_soon(self._hear, frame, account.did, homes)

    async def _hear(self, frame: PendingFrame, did: str, homes: AccountHomes) -> None:
        try:
            if not await homes.hears(did):
                self._converter.counters.elsewhere += 1
                frame.account = None
                frame.clear()
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._boundary.caught(error, "home", host=self._converter.host, did=did)
        frame.waits = False
        self._pass_on()

    def _check(self) -> None:
        """Read and check the frames that were taken: many in a thread, a few here.

        Without signatures a frame takes less time than a thread's part of the hop.
        """
        undecided, self._undecided = self._undecided, []
        if len(undecided) < _WORTH_A_THREAD or not self._converter.proves:
            self._decide(undecided, _check_all(undecided, self._converter.mode))
        else:
            self._nursery.start_soon(self._check_in_thread, undecided)

    async def _check_in_thread(self, undecided: list[Undecided]) -> None:
        # Shielded: frames that were read leave even if the connection ends now. One that breaks
        # again and again would not get anywhere otherwise.
        with trio.CancelScope(shield=True):
            checked = await in_thread(
                _check_all, undecided, self._converter.mode, limiter=self._checking
            )
        self._decide(undecided, checked)
        self._pass_on()

    def _decide(self, undecided: list[Undecided], checked: Checked) -> None:
        """Complete frames, and set the status of each signature, or look up its key in a task."""
        seconds = self._converter.counters.seconds
        for step, spent in zip(_STEPS, checked.seconds, strict=True):
            seconds[step] += spent
        for item, found, good in zip(undecided, checked.found, checked.good, strict=True):
            frame = item.frame
            if frame.unread is not None:
                self._complete(item, found)
            proof = None if frame.update is None else frame.update.proof
            if proof is not None and frame.status is None:
                commit = proof.commit
                alone = found is None and item.commit is None  # was read just now
                if good or commit is None or (alone and _is_good(commit, item.key)):
                    frame.status = SignatureStatus.VALID
                else:
                    self._decide_unproven(frame, commit, item.key)
                    continue
            frame.waits = False

    def _complete(self, item: Undecided, found: Found | None) -> None:
        """Fill a frame with the content of its blocks."""
        frame, unread = item.frame, item.frame.unread
        try:
            assert unread is not None
            self._converter.complete(frame, unread, found)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            frame.fill(self._converter.failed(item.raw, error))
        self._buffer.grow(frame, frame.size)

    def _decide_unproven(
        self, frame: PendingFrame, commit: Commit, failed: PublicKey | None
    ) -> None:
        """Set the status of a commit that is not signed with the key at hand, or look it up."""
        try:
            frame.status = self._verifier.decide_at_once(commit, failed)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            frame.status = self._unverified(commit.did, error)
        if frame.status is None:
            self._nursery.start_soon(self._look_up, frame, commit)
        else:
            frame.waits = False

    async def _look_up(self, frame: PendingFrame, commit: Commit) -> None:
        frame.status = await self._verifier.decide(commit)
        self._leave_out(frame, self._admission.block_of(commit.did))  # now that its host is known
        frame.waits = False
        self._pass_on()

    def _leave_out(self, frame: PendingFrame, kind: BlockKind | None) -> None:
        """Write nothing of a frame whose account or host is blocked but the cursor.

        The state of its repo stays as it was, so that the chain is broken when the block is lifted,
        and the next commit has the repo fetched.
        """
        if kind is not None:
            self._converter.counters.blocked[kind] += 1
            frame.update = frame.account = frame.status = None
            frame.clear()

    def _pass_on(self) -> None:
        """Admit the frames whose turn has come, and give them to the writer."""
        if self._sink.closed:
            return
        ready = self._buffer.take_ready()
        if ready:
            for frame in ready:
                update = frame.update
                try:
                    self._admission.admit(frame)
                except Exception as error:  # noqa: BLE001 - see runtime.boundary
                    did = "" if update is None else update.did
                    self._boundary.caught(error, "commit", host=self._converter.host, did=did)
                    if update is not None:
                        self._admission.put_off(frame, update)
            if self._gap_entries:
                # With the first event after the gap, or one before it: never behind its cursor.
                first, gaps = ready[0], self._gap_entries
                first.entries = [*gaps, *first.entries]
                first.size += sum(len(entry.payload) for entry in gaps)
                self._gap_entries = []
            self._sink.put(ready)
        if not self._buffer.full:
            self._room.set()

    def _unverified(self, did: str, error: Exception) -> SignatureStatus:
        self._boundary.caught(error, "signature", host=self._converter.host, did=did)
        return SignatureStatus.UNVERIFIED

    def _note_gap(self, gap: Gap) -> None:
        self._converter.counters.gaps[gap.kind] += 1
        extra = {key: value for key, value in gap._asdict().items() if value}
        _log.error("gap in the events of a relay; repair scheduled", extra=extra)
        self._gap_entries.append(gap.entry())


class Admission:
    """Decides which entries the frames of one relay become; the module has the order."""

    def __init__(
        self,
        relay: str,
        converter: RepoConverter,
        shared: SharedState,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._relay = relay
        self._converter = converter
        self._counters = converter.counters
        self._shared = shared
        self.block_of = shared.block_of
        self.states = shared.states  # that of a frame's repo must be in memory, see `prefetch`
        self._unproven = Rate(UNPROVEN_PER_MINUTE, UNPROVEN_BURST)
        self._clock = clock
        self._log = ThrottledLog(_log)

    def admit(self, frame: PendingFrame) -> None:
        """Set the entries and the state of a frame, whose signature was checked where it has one.

        From here on its commit counts as taken over, so that it must be given to the writer. The
        state is set last: a commit over which this raises does not count.
        """
        update, frame.update = frame.update, None
        if frame.status is not None:
            self._counters.verdicts[frame.status] += 1
        if update is None:
            if frame.account is not None:
                self._admit_account(frame, frame.account)
            return
        # 1. The known state. A replay was written with the state that makes it one.
        before = self.states.get(update.did)
        if is_replay(before, update.rev):
            self.note_replay(update.did, update.rev)
            if frame.again:
                self._write_again(frame, update)
            else:
                frame.clear()
            return
        # 2. Who signed it? Of a commit without a good signature nothing is written, and nothing is
        # remembered but that its repo may have to be fetched.
        if frame.status is not None and frame.status is not SignatureStatus.VALID:
            frame.clear()
            if frame.status is SignatureStatus.NO_ACCOUNT:
                self._admit_stranger(frame, update)
            else:
                forged = frame.status is SignatureStatus.FORGED
                reason = FetchReason.FORGED if forged else FetchReason.UNVERIFIED
                self._resync_unproven(frame, update, reason, before)
            return
        if not update.readable:  # nor is there a tree that the next commit could follow on
            assert update.problem is not None
            self._resync_unproven(frame, update, update.problem, before)
            return
        # 3. Do its operations lead from the tree before to the signed tree?
        tree: Cid | FetchReason | None = None
        if update.proof is not None:
            tree = update.proof.tree
            if tree is None:
                begin = perf_counter()
                tree = check_operations(update.proof)
                self._counters.seconds["operations"] += perf_counter() - begin
        if isinstance(tree, FetchReason):
            frame.clear()
            self._counters.errors[tree.word] += 1
            self._resync(frame, update, tree, update.ops)
            state = follow(before, update).state
            self._take_over(frame, update, with_flag(state, DESYNCHRONIZED, True))
            return
        # 4. Does it follow on the known state? Whether or not, it is the state from here on.
        state, broken = follow(before, update, tree)
        if broken is FetchReason.UNSEEN and update.problem is None:
            self._discover(frame, update, state)
            return
        # 5. Its records are written; the rest of the repo is fetched.
        problem = broken or update.problem
        owed = before is not None and bool(before[8] & OWED)
        if problem is FetchReason.NO_PREV_DATA or (owed and problem is None):
            reason = problem or FetchReason.UNVERIFIED
            if not self._queue_at_rate(frame, update, reason, ()):
                state = with_flag(state, OWED, True)
        elif problem is not None:
            unwritten = update.ops if problem is FetchReason.TOO_BIG else ()
            self._resync(frame, update, problem, unwritten)
        self._take_over(frame, update, state)

    def _write_again(self, frame: PendingFrame, update: RepoUpdate) -> None:
        """Write a commit that the database has lost; the state of its repo is that or a later one.

        What is not proven is left out: its repo was fetched for it then, and is listed now.
        """
        proven = frame.status is None or frame.status is SignatureStatus.VALID
        if proven and update.readable and update.proof is not None:
            proven = not isinstance(check_operations(update.proof), FetchReason)
        if not proven or not update.readable:
            frame.clear()
        elif update.problem is not None:
            self._resync(frame, update, update.problem, update.ops)

    def put_off(self, frame: PendingFrame, update: RepoUpdate) -> None:
        """Have the repo of a commit fetched over which `admit` raised; nothing else is written.

        If that raises as well, a dead letter names the commit. Its state is still the one before,
        so that the chain breaks at the next commit, which has the repo fetched.
        """
        frame.clear()
        self._shared.resyncs.discard(update.did)
        try:
            self._resync(frame, update, FetchReason.UNVERIFIED, update.ops)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._shared.resyncs.discard(update.did)
            self._converter.boundary.caught(error, "resync", host=self._relay, did=update.did)
            commit = f"{update.did} at {tid_text(update.rev)}"
            for entry in self._converter.keep_raw(b"", "internal", f"{commit}: {described(error)}"):
                frame.add(entry)

    def note_replay(self, did: str, rev: int) -> None:
        """Count a commit that was taken over before."""
        self._counters.replays += 1
        self._shared.dedup.repeated(self._relay, did, rev, self._clock())

    def _take_over(self, frame: PendingFrame, update: RepoUpdate, state: RepoState) -> None:
        """Make a commit the state of its repo, to be stored in one step with its events."""
        self._counters.firsts += 1
        self._shared.dedup.first(self._relay, update.did, update.rev, self._clock())
        frame.state = self.states.set(update.did, state)

    def _resync(
        self,
        frame: PendingFrame,
        update: RepoUpdate,
        reason: FetchReason,
        unwritten: Sequence[RepoOp],
    ) -> None:
        """Have the repo fetched; `unwritten` operations of the commit are not written."""
        self._queue(frame, update.did, tid_text(update.rev), reason, unwritten)

    def _resync_unproven(
        self,
        frame: PendingFrame,
        update: RepoUpdate,
        reason: FetchReason,
        before: RepoState | None,
    ) -> None:
        """Have the repo fetched of a commit that its account may not have made."""
        queued = self._queue_at_rate(frame, update, reason, update.ops)
        # A repo without a state is fetched at its next commit anyway.
        if not queued and before is not None and not before[8] & OWED:
            frame.state = self.states.set(update.did, with_flag(before, OWED, True))

    def _queue_at_rate(
        self,
        frame: PendingFrame,
        update: RepoUpdate,
        reason: FetchReason,
        unwritten: Sequence[RepoOp],
    ) -> bool:
        """Have a repo fetched, unless this relay has caused too many such fetches lately."""
        deletes, now = any(op.cid is None for op in unwritten), self._clock()
        if not self._shared.resyncs.spares(update.did, deletes, now) and not self._unproven.admits(
            now
        ):
            self._counters.resyncs_owed += 1
            return False
        self._resync(frame, update, reason, unwritten)
        return True

    def _queue(
        self,
        frame: PendingFrame,
        did: str,
        rev: str,
        reason: FetchReason,
        unwritten: Sequence[RepoOp],
    ) -> None:
        deletes = any(op.cid is None for op in unwritten)
        stream = self._shared.resyncs.stream(did, deletes, self._clock())
        if stream is None:
            self._counters.resyncs_spared += 1
        else:
            frame.add(self._converter.resync(stream, did, rev, reason, unwritten))

    def _discover(self, frame: PendingFrame, update: RepoUpdate, state: RepoState) -> None:
        """Have a new repo fetched as a whole, unless too many are queued."""
        discovery = self._shared.discovery
        if not discovery.enabled:
            self._take_over(frame, update, make_state(update.rev, update.data))
        elif discovery.admits(self._clock()):
            rev = tid_text(update.rev)
            frame.add(
                self._converter.resync(REPO_BACKFILL, update.did, rev, FetchReason.UNSEEN, ())
            )
            self._take_over(frame, update, state)
        # Else its events are written and its state is not, so that it is new again the next time.

    def _admit_account(self, frame: PendingFrame, account: AccountUpdate) -> None:
        """Note whether the account is active; a copy of what another relay sent has no consequence.

        It is written all the same, if it is an account event: which of an account's statuses stands
        follows from each relay's own order (see `indexer.accounts.statuses`).

        Hosts send an event when that changes. One that comes back may have changed meanwhile. One
        that was active as far as is known has moved, or the event before was lost: a fetch of its
        repo failed then. One that nothing is known of may be new, or have been away since before
        Redis was lost or this relay was read; it is not told apart, and queued as a new repo is.
        """
        if self._shared.dedup.is_repeat(self._relay, account) and not frame.again:
            self._counters.replays += 1
            if account.active is None:
                frame.clear()
            return
        active, did = account.active, account.did
        if active is None or self.block_of(did) is not None:
            return
        state = self.states.get(did)
        if state is None:
            if active and self._shared.discovery.admits(self._clock()):
                frame.add(self._converter.resync(REPO_BACKFILL, did, "", FetchReason.UNSEEN, ()))
            return
        if active:
            self._queue(frame, did, "", FetchReason.REACTIVATED, ())
        if is_inactive(state) == active:
            frame.state = self.states.set(did, with_activity(state, active))

    def _admit_stranger(self, frame: PendingFrame, update: RepoUpdate) -> None:
        """Have the repo of an account fetched that the directory does not know, or not yet.

        Anybody can make up accounts, so there is a limit on them all; a dead letter names the
        commits beyond it.
        """
        self._log.warning(
            "commit of an account that does not exist yet", host=self._relay, did=update.did
        )
        if self._shared.strangers.admits(self._clock()):
            self._resync(frame, update, FetchReason.UNVERIFIED, update.ops)
            return
        commit = f"{update.did} at {tid_text(update.rev)}"
        for entry in self._converter.keep_raw(b"", "no_account", commit):
            frame.add(entry)


class ReorderBuffer:
    """Frames that wait for a check of theirs, and all that came behind them. Pure.

    Order over the whole stream is more than order for each account, and makes the cursor simple:
    everything at or below the last frame that left is stored or waits to be stored. A cursor per
    account, or a set of finished numbers, would let frames overtake each other, and would have to
    be stored as well.
    """

    def __init__(self, max_frames: int = 2_000, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[PendingFrame] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether no frame should be added until some have left."""
        return len(self._frames) >= self._max_frames or self._bytes >= self._max_bytes

    def add(self, frame: PendingFrame, more: int = 0) -> None:
        """Add a frame behind all others; `more` bytes are held besides its entries."""
        frame.held = frame.size + more
        self._frames.append(frame)
        self._bytes += frame.held

    def grow(self, frame: PendingFrame, more: int) -> None:
        """Count `more` bytes of a frame in the buffer."""
        frame.held += more
        self._bytes += more

    def take_ready(self) -> list[PendingFrame]:
        """Remove and return the frames before the first one that waits."""
        ready: list[PendingFrame] = []
        frames = self._frames
        while frames and not frames[0].waits:
            frame = frames.popleft()
            self._bytes -= frame.held
            ready.append(frame)
        return ready


def _check_all(undecided: Sequence[Undecided], mode: int) -> Checked:
    """Read the blocks of commits as far as compiled code does, and check signatures.

    A commit that it leaves over is neither found nor good; `_decide` goes on with it. All of them
    are, if a defect of ours makes this raise.
    """
    try:
        return _check_together(undecided, mode)
    except Exception:  # noqa: BLE001 - found again where each is read alone
        return Checked([None] * len(undecided), [False] * len(undecided), (0.0, 0.0, 0.0))


def _check_together(undecided: Sequence[Undecided], mode: int) -> Checked:
    found: list[Found | None] = [None] * len(undecided)
    good = [False] * len(undecided)
    seconds = (0.0, 0.0, 0.0)
    places, given = [], []
    for place, (frame, _, key, _) in enumerate(undecided):
        unread = frame.unread
        if unread is not None:
            places.append(place)
            held = None if key is None else key.secp256k1
            given.append((unread.message, unread.ops, held))
    proven = compiled.prove(given, mode, MAX_FRAME_OUTPUT)
    if proven is not None:
        results, seconds = proven
        for place, result in zip(places, results, strict=True):
            found[place] = result
    begin = perf_counter()
    for place, (_, _, key, commit) in enumerate(undecided):
        result = found[place]
        if result is not None:
            good[place] = result[1] is True
            if result[1] is None and result[2] is not None and key is not None:  # of P-256
                good[place] = _is_good(parse_commit(result[2]), key)
        elif commit is not None:
            good[place] = _is_good(commit, key)
    return Checked(found, good, (*seconds[:2], seconds[2] + perf_counter() - begin))


def _is_good(commit: Commit, key: PublicKey | None) -> bool:
    """Return whether a commit is signed with a key; not, if a defect of ours makes that raise."""
    try:
        return key is not None and verify_commit(commit, key)
    except Exception:  # noqa: BLE001 - found again by the look-up that follows a bad signature
        return False
