"""Counting: sums reach the metrics, and every reason has a series of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

import rsky_pipeline
from rsky_pipeline.ingester.commits.signatures import SignatureStatus
from rsky_pipeline.ingester.frames import FrameCounters
from rsky_pipeline.observability.ingester import ERROR_REASONS, VERDICTS, IngesterMetrics

PACKAGE = Path(rsky_pipeline.__file__).parent
READING = ("atproto/frame.py", "atproto/cbor.py", "atproto/car.py", "atproto/cid.py",
           "atproto/dagjson.py", "ingester/commits/convert.py", "ingester/commits/validation.py",
           "ingester/labels.py")  # fmt: skip


def reasons(path: Path) -> Iterator[str]:
    """Yield the codes of every InvalidDataError that a module makes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvalidDataError":
            code = node.args[0]
            if isinstance(code, ast.Constant):
                yield str(code.value)


def test_every_reason_of_refusing_data_is_a_series() -> None:
    found = {code for module in READING for code in reasons(PACKAGE / module)}
    # These are of commit objects, whole repos and JSON, which reach no counter by this name.
    elsewhere = {"not_canonical", "too_many_blocks", "invalid_bytes", "invalid_json"}
    assert found - set(ERROR_REASONS) <= elsewhere
    assert len(found) > 20


def test_verdicts_are_series() -> None:
    assert {verdict.value for verdict in SignatureStatus} == set(VERDICTS)


def test_a_tally_is_added_once_and_starts_again_at_zero() -> None:
    registry = CollectorRegistry()
    metrics, tally = IngesterMetrics(registry), FrameCounters()
    for _ in range(2):
        tally.messages += 3
        tally.creates += 2
        tally.frames["commit"] += 3
        tally.errors["float"] += 1
        tally.errors["never heard of"] += 1
        tally.infos["never heard of"] += 1
        tally.resyncs["sync"] += 1
        tally.resyncs_owed += 1
        tally.report(metrics, "relay.test")
        tally.report(metrics, "relay.test")
    value = registry.get_sample_value
    assert value("ingester_firehose_messages_total") == 6
    assert value("ingester_firehose_create_events_total") == 4
    assert value("ingester_frames_total", {"type": "commit"}) == 6
    assert value("ingester_errors_total") == 4
    assert value("ingester_error_reasons_total", {"reason": "float"}) == 2
    assert value("ingester_error_reasons_total", {"reason": "other"}) == 2
    assert value("ingester_info_frames_total", {"name": "other"}) == 2
    assert value("ingester_resyncs_total", {"reason": "sync"}) == 2
    assert value("ingester_resyncs_owed_total") == 2
