"""What a demonstration shows, and what it keeps away from its processes."""

import io

import pytest
from rich.console import Console

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.figures import Figures, Observer
from rsky_pipeline.demo.processes import clean_environment
from rsky_pipeline.demo.simulator.compare import TableReport
from rsky_pipeline.demo.simulator.control import Control, SimulationProgress
from rsky_pipeline.demo.view import LineView, LiveView, opened, summary
from rsky_pipeline.streams.lag import StreamReport

WORKER = {
    "name": "indexer-1", "role": "indexer", "kind": "worker", "state": "ready", "pid": 7,
    "rate": 123.4, "lag": 5, "lag_seconds": None, "restarts": 0, "rss_bytes": 50_000_000,
}  # fmt: skip
STORE = WORKER | {"name": "valkey", "role": "valkey", "kind": "store", "rate": None, "lag": None}
FIGURES = Figures(
    progress=SimulationProgress(False, 1_234, 1_300, 10, 10),
    processes=(STORE, WORKER),
    streams={"firehose_live": 42},
    rows={"record": 1_000, "like": 600},
)


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, force_terminal=terminal, width=120, color_system=None), output


def test_a_terminal_is_shown_tables() -> None:
    target, output = console(terminal=True)
    with opened(target) as view:
        assert isinstance(view, LiveView)
        view.show(Figures(), "nothing yet")
        view.show(FIGURES, "30 s left")
    for text in ("30 s left", "1,234 events", "indexer-1", "123", "50 MB", "firehose_live", "600"):
        assert text in output.getvalue()


def test_a_log_is_given_a_line_from_time_to_time() -> None:
    target, output = console(terminal=False)
    with opened(target) as view:
        assert isinstance(view, LineView)
        for _ in range(5):
            view.show(FIGURES, "30 s left")
    (line,) = output.getvalue().splitlines()
    assert line == "30 s left | 1,234 published | indexer-1 ready 123/s lag 5 | 1,000 records"


@pytest.mark.parametrize(
    ("report", "dead", "differences"),
    [
        (TableReport("like", 10, 10, 0, 0, 0, ()), {}, 0),
        (TableReport("like", 10, 9, 1, 0, 2, ("missing at://x",)), {}, 3),
        (TableReport("like", 10, 10, 0, 0, 0, ()), {"firehose_live_dlq": 4}, 4),
    ],
)
def test_a_summary_counts_every_difference(
    report: TableReport, dead: dict[str, int], differences: int
) -> None:
    target, output = console(terminal=False)
    assert summary(target, [report], dead) == differences
    text = output.getvalue()
    assert f"{differences} differences in 10 rows" in text
    assert all(example in text for example in report.examples)
    assert all(f"{name}: {count} dead letters" in text for name, count in dead.items())


def test_nothing_that_configures_the_pipeline_reaches_a_demonstration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RSKY_PIPELINE_REDIS_URL", "REDIS_URL", "DATABASE_URL", "RSKY_PIPELINE_CONFIG"):
        monkeypatch.setenv(name, "redis://production")
    monkeypatch.setenv("HOME", "/home/somebody")
    environment = clean_environment()
    assert "redis://production" not in environment.values()
    assert environment["HOME"] == "/home/somebody"


@pytest.mark.parametrize("text", [b"", b"7.5", b"-1", b"\xff", b"9" * 5_000])
def test_a_cursor_that_is_no_number_is_work_left(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Redis:
        def call(self, command: str, *_: object) -> object:
            return text if command == "GET" else 0

        def close(self) -> None: ...

    empty = StreamReport("", 0, 0, None, None, 0.0, ())
    for name, made in (("connect", Redis()), ("inspect", empty), ("count_waiting", 0)):
        made_up = lambda *_, made=made, **__: made  # noqa: E731
        monkeypatch.setattr(f"rsky_pipeline.demo.figures.{name}", made_up)
    relay = "http://127.0.0.1:1"
    observer = Observer(Settings(), Control(relay), relay, relay)
    left = observer.waiting(SimulationProgress(False, 1, 1, 1, 1))
    assert sum("is not a sequence number" in each for each in left) == 2
