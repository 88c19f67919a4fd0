"""Made-up measurements, for rules that only look at figures."""

from collections.abc import Mapping

from rsky_pipeline.health.samples import Exported, Sample
from rsky_pipeline.operations.scrape import Scrape, ScrapeTarget
from rsky_pipeline.operations.stream_figures import GroupFigures, Measurement, StreamFigures
from rsky_pipeline.operations.verification.run import Look
from rsky_pipeline.streams.lag import GroupReport, ServerMemory, StreamReport
from rsky_pipeline.streams.names import BSYNC_LIVE, STREAMS


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
    added: int | None = None,
    counts_added: bool = True,
) -> StreamFigures:
    group = GroupReport("g", pending, lag, age, position, 1)
    number = length if added is None else added
    report = StreamReport(
        name, length, number, None, "9-0", 0.0, (group,), counts_added=counts_added
    )
    figures = (GroupFigures(group, rate),)
    return StreamFigures(report, 0, bytes_each, rate, mark, dead, figures)


def measurement(
    *given: StreamFigures, seconds: float = 30.0, used: int = 1, limit: int = 0,
    policy: str = "noeviction",
) -> Measurement:  # fmt: skip
    named = {item.name: item for item in given}
    marks = {BSYNC_LIVE: None}  # without bsync_url nothing is appended
    found = tuple(
        named.get(name) or stream(name, mark=marks.get(name, 100_000)) for name in STREAMS
    )
    return Measurement(seconds, found, ServerMemory(used, limit, 0, policy))


def scraped(samples: Mapping[str, float], role: str = "indexer") -> Scrape:
    """Return a scrape without labels."""
    return Scrape(
        ScrapeTarget(f"{role}-1", role, 1), {name: {(): v} for name, v in samples.items()}
    )


def look(measured: Measurement, moment: float, scrapes: tuple[Scrape, ...] = ()) -> Look:
    """Return what `verify` saw at a moment."""
    sample = Sample(
        moment,
        tuple(item.report for item in measured.streams),
        {item.name: item.dead_letters for item in measured.streams},
        memory=measured.memory,
        workers=tuple(Exported(each.target.name, each.samples) for each in scrapes),
    )
    return Look(sample, scrapes, measured)
