"""The relay's side of the ingester without a network or a store."""

from collections.abc import Sequence

import trio

from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.commits.convert import RepoConverter
from rsky_pipeline.ingester.commits.homes import AccountHomes
from rsky_pipeline.ingester.commits.relays import RelayDedup
from rsky_pipeline.ingester.commits.resync import Resyncs
from rsky_pipeline.ingester.commits.signatures import SignatureStatus, SignatureVerifier
from rsky_pipeline.ingester.commits.states import RepoStates
from rsky_pipeline.ingester.frames import FrameCounters, PendingFrame, RawDeadLetters
from rsky_pipeline.ingester.pipeline import Admission, FrameIntake, SharedState
from rsky_pipeline.ingester.sequence import GapWatch, SeqGate
from rsky_pipeline.ingester.writer import FrameSink

RELAY = "relay.test"


async def read_nothing(where: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Stand for a store that has no repo."""
    return [b""] * len(where)


def shared_state(*relays: str) -> SharedState:
    """Return an empty state."""
    return SharedState(RepoStates(read_nothing), RelayDedup(relays or (RELAY,)), Resyncs(60))


class Converting:
    """A converter and the admission behind it."""

    def __init__(
        self,
        verify: Verify = "none",
        collections: tuple[str, ...] = ("app.bsky.",),
        shared: SharedState | None = None,
        relay: str = RELAY,
    ) -> None:
        self.now = 0.0
        self.counters = FrameCounters()
        self.shared = shared or shared_state()
        self.converter = RepoConverter(
            relay, f"https://{relay}", collections, self.counters, RawDeadLetters("raw"),
            verify=verify,
        )  # fmt: skip
        self.admission = Admission(relay, self.converter, self.shared, clock=lambda: self.now)

    def convert(self, raw: bytes, status: SignatureStatus | None = None) -> PendingFrame:
        """Return what is written of a frame, by default one that nothing has to prove."""
        frame = self.converter.convert(raw)
        frame.status = status
        self.admission.admit(frame)
        return frame

    def intake(
        self, sink: FrameSink, last: int, nursery: trio.Nursery, verifier: SignatureVerifier,
        gaps: GapWatch | None = None, homes: AccountHomes | None = None,
    ) -> FrameIntake:  # fmt: skip
        """Return the intake of a connection that goes on behind a sequence number."""
        gaps = gaps or GapWatch(self.converter.host, None, None)
        return FrameIntake(
            self.converter, sink, SeqGate(last), nursery, verifier, self.admission, gaps, homes
        )
