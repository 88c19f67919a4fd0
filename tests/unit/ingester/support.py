"""An intake without a network or a store."""

from collections.abc import Sequence

from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.commits import RepoConverter
from rsky_pipeline.ingester.convert import Converted
from rsky_pipeline.ingester.judge import Judge, Memory
from rsky_pipeline.ingester.quarantine import Quarantine
from rsky_pipeline.ingester.relays import RelayBoard
from rsky_pipeline.ingester.resync import Resyncs
from rsky_pipeline.ingester.states import RepoStates
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.ingester.verify import Verdict

RELAY = "relay.test"


async def read_nothing(where: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Stand for a store that knows no repo."""
    return [b""] * len(where)


def memory(*relays: str) -> Memory:
    """Return an empty memory."""
    return Memory(RepoStates(read_nothing), RelayBoard(relays or (RELAY,)), Resyncs(60))


class Converting:
    """A converter and the judge behind it."""

    def __init__(
        self,
        verify: Verify = "none",
        collections: tuple[str, ...] = ("app.bsky.",),
        shared: Memory | None = None,
        relay: str = RELAY,
    ) -> None:
        self.tally = Tally()
        self.memory = shared or memory()
        self.converter = RepoConverter(
            relay, f"https://{relay}", collections, self.tally, Quarantine("raw"), verify=verify
        )
        self.judge = Judge(relay, self.converter, self.memory, clock=lambda: 0.0)

    def convert(self, raw: bytes, verdict: Verdict | None = None) -> Converted:
        """Return what is written of a frame, by default one that nothing has to prove."""
        return self.judge.judge(self.converter.convert(raw), verdict)
