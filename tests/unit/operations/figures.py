"""Made-up measurements, for rules that only look at figures."""

from collections.abc import Mapping

from rsky_pipeline.operations.scrape import Scrape, Target
from rsky_pipeline.operations.stream_figures import GroupFigures, Measurement, StreamFigures
from rsky_pipeline.streams.lag import GroupReport, StreamReport
from rsky_pipeline.streams.memory import ServerMemory
from rsky_pipeline.streams.names import STREAMS


def stream(
    name: str = "firehose_live",
    *,
    length: int = 0,
    rate: float | None = 0.0,
    mark: int | None = 100_000,
    lag: int = 0,
    pending: int = 0,
    age: float = 0.0,
    position: str = "5-0",
    dead: int = 0,
    bytes_each: float | None = None,
) -> StreamFigures:
    group = GroupReport("g", pending, lag, age, position, 1)
    report = StreamReport(name, length, length, None, "9-0", 0.0, (group,))
    figures = (GroupFigures(group, rate),)
    return StreamFigures(report, 0, bytes_each, rate, mark, dead, figures)


def measurement(
    *given: StreamFigures, seconds: float = 30.0, used: int = 1, limit: int = 0,
    policy: str = "noeviction",
) -> Measurement:  # fmt: skip
    named = {item.name: item for item in given}
    found = tuple(named.get(name) or stream(name) for name in STREAMS)
    return Measurement(seconds, found, ServerMemory(used, limit, 0, policy))


def scraped(samples: Mapping[str, float], role: str = "indexer") -> Scrape:
    """Return a scrape without labels."""
    return Scrape(Target(f"{role}-1", role, 1), {name: {(): v} for name, v in samples.items()})
