"""From raw frames to the writer: convert, drop repeats, and where asked for wait for proof."""

from collections.abc import Iterable

import trio

from rsky_pipeline.ingester.convert import Claim, Converted, Converter
from rsky_pipeline.ingester.cursor import SeqGate
from rsky_pipeline.ingester.verify import Verdict, Verifier
from rsky_pipeline.ingester.window import Slot, Window
from rsky_pipeline.ingester.writer import Writer


class Intake:
    """What one connection brings, on its way to the writer.

    With a verifier, frames leave in the order in which they came, while any number of lookups for
    them run at once. The nursery is the connection's: what was not decided when it ends is read
    again from the cursor.
    """

    def __init__(
        self,
        converter: Converter,
        writer: Writer,
        gate: SeqGate,
        verifier: Verifier | None,
        nursery: trio.Nursery,
    ) -> None:
        self._converter = converter
        self._writer = writer
        self._gate = gate
        self._verifier = verifier
        self._nursery = nursery
        self._window = Window()
        self._room = trio.Event()

    def take(self, messages: Iterable[bytes]) -> None:
        """Take frames as they came from the socket."""
        convert, admits = self._converter.convert, self._gate.admits
        tally = self._converter.tally
        now = trio.current_time()
        frames: list[Converted] = []
        for raw in messages:
            frame = convert(raw)
            if frame.seq is not None and not admits(frame.seq, now):
                tally.duplicates += 1
            else:
                frames.append(frame)
        if self._verifier is None:
            self._writer.put(frames)
        else:
            for frame in frames:
                self._check(self._verifier, frame)
            self._pass_on()

    async def room(self) -> None:
        """Wait while too many frames wait for proof."""
        while self._window.full:
            self._room = trio.Event()
            await self._room.wait()

    def _check(self, verifier: Verifier, frame: Converted) -> None:
        if frame.changed_did is not None:
            verifier.forget(frame.changed_did)
        if frame.claim is None:
            self._window.add(frame.size, frame)
            return
        verdict = verifier.decide_at_once(frame.claim)
        if verdict is not None:
            self._window.add(frame.size, self._judge(frame, verdict))
        else:
            slot = self._window.add(frame.size)
            self._nursery.start_soon(self._look_up, verifier, slot, frame, frame.claim)

    async def _look_up(
        self, verifier: Verifier, slot: Slot, frame: Converted, claim: Claim
    ) -> None:
        slot.result = self._judge(frame, await verifier.decide(claim))
        self._pass_on()

    def _judge(self, frame: Converted, verdict: Verdict) -> Converted:
        """Return what may be written of a frame."""
        tally = self._converter.tally
        tally.verdicts[verdict.value] += 1
        if verdict is Verdict.VALID:
            return frame
        if verdict is Verdict.NO_ACCOUNT or frame.instead is None:
            return frame._replace(entries=[], size=0)
        tally.resyncs[verdict.value] += 1
        return frame._replace(entries=[frame.instead], size=len(frame.instead.payload))

    def _pass_on(self) -> None:
        self._writer.put(self._window.take_ready())
        if not self._window.full:
            self._room.set()
