"""From raw frames to the writer: drop repeats, convert, wait for proof, keep each repo's chain."""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

import trio

from rsky_pipeline.atproto.crypto import SignatureCheck, check_all
from rsky_pipeline.atproto.frame import InfoMessage, LabelsMessage, Message
from rsky_pipeline.ingester.convert import MAX_TIME, Claim, Converted, Converter
from rsky_pipeline.ingester.gaps import GapWatch
from rsky_pipeline.ingester.judge import Judge, is_about_repo, needs_state
from rsky_pipeline.ingester.label_proof import LabelProof
from rsky_pipeline.ingester.seq_gate import SeqGate
from rsky_pipeline.ingester.verify import Verdict, Verifier
from rsky_pipeline.ingester.window import Slot, Window
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import in_thread
from rsky_pipeline.streams.append import Entry

_log = logging.getLogger(__name__)

Checked = tuple[Converted, Verdict | None]
_AT_ONCE = 64  # frames
_WORTH_A_THREAD = 16  # signatures; a hop costs as much as two to six


class Read(NamedTuple):
    """A frame that was read, and how far the stream is covered with it; None if nobody knows."""

    item: Message | Converted
    raw: bytes
    covered: int | None


class Claimed(NamedTuple):
    """A frame whose claim is not decided, and the check of its signature if its key is known."""

    slot: Slot[Checked]
    frame: Converted
    claim: Claim
    check: SignatureCheck | None


class Proof(NamedTuple):
    """Which signatures are good, and how many seconds that took."""

    good: list[bool]
    seconds: float


class Sink(Protocol):
    """Takes what may be written; a `writer.Lane` is one."""

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more until the connection begins anew."""

    def put(self, frames: Sequence[Converted]) -> None:
        """Take frames in the order in which they came."""


class Intake:
    """What one connection brings, on its way to the writer.

    With a verifier, frames leave in the order in which they came, while signatures are checked in a
    thread and any number of lookups run at once. The nursery is the connection's: what was not
    decided when it ends is read again from the cursor. Without a judge frames are passed on as they
    are, as labels are.
    """

    def __init__(
        self,
        converter: Converter,
        sink: Sink,
        gate: SeqGate,
        nursery: trio.Nursery,
        verifier: Verifier | None = None,
        judge: Judge | None = None,
        gaps: GapWatch | None = None,
        labels: LabelProof | None = None,
    ) -> None:
        self._converter = converter
        self._sink = sink
        self._gate = gate
        self._nursery = nursery
        self._verifier = verifier
        self._judge = judge
        self._gaps = gaps
        self._labels = labels
        self._gap_entries: list[Entry] = []  # appended with what is passed on next
        self._boundary = Boundary(converter.tally.internal_error)
        self._throttle = Throttled()
        self._window = Window[Checked]()
        self._claimed: list[Claimed] = []
        self._prover = trio.CapacityLimiter(1)
        self._room = trio.Event()

    async def take(self, messages: Sequence[bytes]) -> None:
        """Take frames as they came from the socket.

        Raises StoreUnavailable and StoreRejected when the states of their repos cannot be read. The
        frames are lost then, and must be read again from the cursor.
        """
        judge = self._judge
        frames = self._read(messages)
        if judge is None:
            for item in frames:
                self._sink.put([await self._proven(item)])
            return
        await judge.states.prefetch([item.did for item, _, _ in frames if needs_state(item)])
        for start in range(0, len(frames), _AT_ONCE):
            if start:  # others want to run as well
                await trio.lowlevel.checkpoint()
            for item in frames[start : start + _AT_ONCE]:
                try:
                    self._take(judge, item)
                except Exception as error:  # noqa: BLE001 - see runtime.boundary
                    self._window.add(0, (self._defect(item, error), None))
            self._prove(judge)
            self._pass_on(judge)

    async def room(self) -> None:
        """Wait while too many frames wait for proof."""
        while self._window.full:
            self._room = trio.Event()
            await self._room.wait()

    async def _proven(self, item: Read) -> Converted:
        """Convert a frame of a labeler, and leave out what is not proven."""
        message, raw, _ = item
        if self._labels is None or not isinstance(message, LabelsMessage):
            return _converted(self._converter, item)
        sifted = await self._labels.sift(message)
        frame = _converted(self._converter, item._replace(item=sifted.message))
        aside = [
            entry
            for verdict in sifted.refused
            for entry in self._converter.keep_aside(raw, f"label_{verdict}", "not proven")
        ]
        size = frame.size + sum(len(entry.payload) for entry in aside)
        return frame._replace(entries=[*aside, *frame.entries], size=size)

    def _read(self, messages: Sequence[bytes]) -> list[Read]:
        """Decode frames, and leave out those that came before."""
        read, gate = self._converter.read, self._gate
        now = trio.current_time()
        frames: list[Read] = []
        for raw in messages:
            item = read(raw)
            seq: int | None = getattr(item, "seq", None)
            if seq is None:
                frames.append(Read(item, raw, None))
                self._note_remark(item)
                continue
            before = gate.last
            if gate.place(seq, now) == "old":
                self._note_old(seq)
                continue
            if gate.jumps:
                self._note_jumps()
            if gate.last != before:
                self._watch(gate.last, item)
            frames.append(Read(item, raw, gate.last if gate.last >= 0 else None))
        return frames

    def _note_old(self, seq: int) -> None:
        self._converter.tally.duplicates += 1
        held_back = self._throttle.allow("old")
        if held_back is not None:
            extra = {"host": self._converter.host, "seq": seq, "last": self._gate.last}
            _log.info("left out an event whose number is not new",
                      extra={**extra, "unlogged": held_back})  # fmt: skip

    def _note_jumps(self) -> None:
        for jump in self._gate.jumps:
            outcome = "followed" if jump.followed else "ignored"
            self._converter.tally.jumps[outcome] += 1
            held_back = self._throttle.allow(outcome)
            if held_back is not None:
                _log.warning(
                    "the numbers of a host jumped" if jump.followed
                    else "an event had a number from which its host did not go on",
                    extra={"host": self._converter.host, "before": jump.before, "seq": jump.seq,
                           "unlogged": held_back},
                )  # fmt: skip
        self._gate.jumps.clear()

    def _note_remark(self, item: object) -> None:
        if self._gaps is not None and isinstance(item, InfoMessage):
            self._gaps.outdated |= item.name == "OutdatedCursor"

    def _watch(self, seq: int, item: object) -> None:
        if self._gaps is None:
            return
        gap = self._gaps.observe(seq, getattr(item, "time", None))
        if gap is not None:
            self._converter.tally.gaps[gap.kind] += 1
            _log.error(
                "a relay did not send everything: a sweep will repair it",
                extra={key: value for key, value in gap._asdict().items() if value},
            )
            self._gap_entries.append(gap.entry())

    def _take(self, judge: Judge, item: Read) -> None:
        message = item.item
        if is_about_repo(message) and judge.is_replay(message):
            self._window.add(0, (Converted(item.covered, message.time[:MAX_TIME], [], 0), None))
            return
        frame = _converted(self._converter, item)
        verifier = self._verifier
        if verifier is None:
            self._window.add(frame.size, (frame, None))
            return
        if frame.changed_did is not None:
            verifier.forget(frame.changed_did)
        if frame.claim is None:
            self._window.add(frame.size, (frame, None))
            return
        slot = self._window.add(frame.size + len(item.raw))  # a claim holds what came
        try:
            check = verifier.check(frame.claim)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            slot.result = (frame, self._unverified(frame.claim, error))
            return
        self._claimed.append(Claimed(slot, frame, frame.claim, check))

    def _prove(self, judge: Judge) -> None:
        """Have the signatures of the frames that were taken checked."""
        claimed, self._claimed = self._claimed, []
        if not claimed:
            return
        checks = [item.check for item in claimed if item.check is not None]
        if len(checks) < _WORTH_A_THREAD:
            self._decide(judge, claimed, _prove_all(checks))
        else:
            self._nursery.start_soon(self._prove_apart, judge, claimed, checks)

    async def _prove_apart(
        self, judge: Judge, claimed: list[Claimed], checks: list[SignatureCheck]
    ) -> None:
        # What was read is passed on even if the connection ends now: one that breaks again and
        # again would not get anywhere.
        with trio.CancelScope(shield=True):
            proof = await in_thread(_prove_all, checks, limiter=self._prover)
        self._decide(judge, claimed, proof)
        self._pass_on(judge)

    def _decide(self, judge: Judge, claimed: list[Claimed], proof: Proof) -> None:
        verifier = self._verifier
        assert verifier is not None
        self._converter.tally.seconds["signature"] += proof.seconds
        good = iter(proof.good)
        for slot, frame, claim, check in claimed:
            is_good = check is not None and next(good)
            verdict: Verdict | None
            try:
                verdict = verifier.decide_at_once(claim, check, is_good)
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                verdict = self._unverified(claim, error)
            if verdict is not None:
                slot.result = (frame, verdict)
            else:
                self._nursery.start_soon(self._look_up, verifier, judge, slot, frame, claim)

    async def _look_up(
        self, verifier: Verifier, judge: Judge, slot: Slot[Checked], frame: Converted, claim: Claim
    ) -> None:
        slot.result = (frame, await verifier.decide(claim))
        self._pass_on(judge)

    def _pass_on(self, judge: Judge) -> None:
        if self._sink.closed:
            return
        ready = self._window.take_ready()
        if ready:
            judged = []
            for frame, verdict in ready:
                try:
                    judged.append(judge.judge(frame, verdict))
                except Exception as error:  # noqa: BLE001 - see runtime.boundary
                    self._boundary.caught(error, "commit", host=self._converter.host)
                    judged.append(judge.unknown(frame))
            if self._gap_entries:
                # With the first event after the gap, or one before it: never behind its cursor.
                judged[0] = judged[0]._replace(entries=[*self._gap_entries, *judged[0].entries])
                self._gap_entries = []
            self._sink.put(judged)
        if not self._window.full:
            self._room.set()

    def _unverified(self, claim: Claim, error: Exception) -> Verdict:
        self._boundary.caught(error, "signature", host=self._converter.host, did=claim.did)
        return Verdict.UNVERIFIED

    def _defect(self, item: Read, error: Exception) -> Converted:
        """Keep aside a frame that hits a defect of ours; the stream is covered with it."""
        host = self._converter.host
        self._boundary.caught(error, "frame", host=host)
        entries = self._converter.keep_aside(item.raw, "internal", repr(error))
        size = sum(len(entry.payload) for entry in entries)
        return Converted(item.covered, None, entries, size)


def _converted(converter: Converter, read: Read) -> Converted:
    item, raw, covered = read
    frame = item if isinstance(item, Converted) else converter.convert_read(item, raw)
    return frame if frame.seq == covered else frame._replace(seq=covered)


def _prove_all(checks: Sequence[SignatureCheck]) -> Proof:
    begin = perf_counter()
    try:
        good = check_all(checks)
    except Exception:  # noqa: BLE001 - found again by the look-up that follows a bad signature
        good = [_is_good(check) for check in checks]
    return Proof(good, perf_counter() - begin)


def _is_good(check: SignatureCheck) -> bool:
    try:
        return check_all([check])[0]
    except Exception:  # noqa: BLE001
        return False
