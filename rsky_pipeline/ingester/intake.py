"""From raw frames to the writer: drop repeats, convert, wait for proof, keep each repo's chain."""

import logging
from collections.abc import Sequence
from typing import Protocol

import trio

from rsky_pipeline.atproto.frame import InfoMessage, LabelsMessage, Message
from rsky_pipeline.ingester.convert import MAX_TIME, Claim, Converted, Converter
from rsky_pipeline.ingester.cursor import SeqGate
from rsky_pipeline.ingester.gaps import GapWatch
from rsky_pipeline.ingester.judge import Judge, is_about_repo, needs_state
from rsky_pipeline.ingester.label_proof import LabelProof
from rsky_pipeline.ingester.verify import Verdict, Verifier
from rsky_pipeline.ingester.window import Slot, Window
from rsky_pipeline.streams.append import Entry

_log = logging.getLogger(__name__)

Read = tuple[Message | Converted, bytes]
Checked = tuple[Converted, Verdict | None]
_AT_ONCE = 64  # frames


class Sink(Protocol):
    """Takes what may be written; a `writer.Lane` is one."""

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more until the connection begins anew."""

    def put(self, frames: Sequence[Converted]) -> None:
        """Take frames in the order in which they came."""


class Intake:
    """What one connection brings, on its way to the writer.

    With a verifier, frames leave in the order in which they came, while any number of lookups for
    them run at once. The nursery is the connection's: what was not decided when it ends is read
    again from the cursor. Without a judge frames are passed on as they are, as labels are.
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
        self._window = Window[Checked]()
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
        await judge.states.prefetch([item.did for item, _ in frames if needs_state(item)])
        for start in range(0, len(frames), _AT_ONCE):
            if start:  # others want to run as well
                await trio.lowlevel.checkpoint()
            for item in frames[start : start + _AT_ONCE]:
                self._take(judge, item)
            self._pass_on(judge)

    async def room(self) -> None:
        """Wait while too many frames wait for proof."""
        while self._window.full:
            self._room = trio.Event()
            await self._room.wait()

    async def _proven(self, item: Read) -> Converted:
        """Convert a frame of a labeler, and leave out what is not proven."""
        message, raw = item
        if self._labels is None or not isinstance(message, LabelsMessage):
            return _converted(self._converter, item)
        sifted = await self._labels.sift(message)
        frame = _converted(self._converter, (sifted.message, raw))
        aside = [
            entry
            for verdict in sifted.refused
            for entry in self._converter.keep_aside(raw, f"label_{verdict}", "not proven")
        ]
        size = frame.size + sum(len(entry.payload) for entry in aside)
        return frame._replace(entries=[*aside, *frame.entries], size=size)

    def _read(self, messages: Sequence[bytes]) -> list[Read]:
        """Decode frames, and leave out those that came before."""
        read, admits = self._converter.read, self._gate.admits
        now = trio.current_time()
        frames: list[Read] = []
        for raw in messages:
            item = read(raw)
            seq: int | None = getattr(item, "seq", None)
            if seq is not None and not admits(seq, now):
                self._converter.tally.duplicates += 1
                continue
            if self._gaps is not None:
                self._watch(self._gaps, item, seq)
            frames.append((item, raw))
        return frames

    def _watch(self, gaps: GapWatch, item: object, seq: int | None) -> None:
        if seq is None:
            gaps.outdated |= isinstance(item, InfoMessage) and item.name == "OutdatedCursor"
            return
        gap = gaps.observe(seq, getattr(item, "time", None))
        if gap is not None:
            self._converter.tally.gaps[gap.kind] += 1
            _log.error(
                "a relay did not send everything: a sweep will repair it",
                extra={key: value for key, value in gap._asdict().items() if value},
            )
            self._gap_entries.append(gap.entry())

    def _take(self, judge: Judge, item: Read) -> None:
        message = item[0]
        if is_about_repo(message) and judge.is_replay(message):
            self._window.add(0, (Converted(message.seq, message.time[:MAX_TIME], [], 0), None))
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
        with self._converter.tally.timed("signature"):
            verdict = verifier.decide_at_once(frame.claim)
        if verdict is not None:
            self._window.add(frame.size, (frame, verdict))
        else:
            slot = self._window.add(frame.size)
            self._nursery.start_soon(self._look_up, verifier, judge, slot, frame, frame.claim)

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
            judged = [judge.judge(frame, verdict) for frame, verdict in ready]
            if self._gap_entries:
                # With the first event after the gap, or one before it: never behind its cursor.
                judged[0] = judged[0]._replace(entries=[*self._gap_entries, *judged[0].entries])
                self._gap_entries = []
            self._sink.put(judged)
        if not self._window.full:
            self._room.set()


def _converted(converter: Converter, item: Read) -> Converted:
    message, raw = item
    return message if isinstance(message, Converted) else converter.convert_read(message, raw)
