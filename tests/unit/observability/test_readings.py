"""The rules and `verify` read metrics that exist: a renamed one would look like a healthy 0."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.topology import FIREHOSE_BACKFILL, FIREHOSE_LIVE, ROLE_NAMES
from rsky_pipeline.observability import readings
from rsky_pipeline.observability.catalogue import declared
from rsky_pipeline.observability.findings import FindingMetrics
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.ingester import LIST_REPOS, IngesterMetrics
from rsky_pipeline.observability.rules import Loop, Written
from rsky_pipeline.operations import monitoring, trace
from rsky_pipeline.operations.verification import flow
from rsky_pipeline.operations.verification import run as verification

METRIC = re.compile(r'"((?:ingester|indexer|backfiller)_[a-z0-9_]+)"')


@pytest.mark.parametrize("module", [readings, flow, verification, trace, monitoring])
def test_what_is_read_is_declared(module: object) -> None:
    known = {name for role in ROLE_NAMES for name in declared(role)}
    read = set(METRIC.findall(Path(str(getattr(module, "__file__"))).read_text()))  # noqa: B009
    plain = {re.sub(r"_(count|sum)$", "", name) for name in read}
    assert plain - known - {"indexer_errors"} == set()  # the name of a check


def test_an_ingester_is_read() -> None:
    registry = CollectorRegistry()
    metrics = IngesterMetrics(registry, relays=["a", "b"], disconnect_reasons=["closed"])
    metrics.messages.inc(7)
    metrics.cursor.labels("firehose_live", "a").set(5)
    metrics.listing_failures.labels("b", LIST_REPOS).inc(3)
    metrics.listing_pages.labels("a", LIST_REPOS).inc(9)
    reader = readings.Reader(registry, "ingester")
    values = reader.values()
    assert (values.messages, values.cursor) == (7.0, 5.0)
    assert values.loops[:2] == (Loop("listRepos of a", 0.0, 9.0), Loop("listRepos of b", 3.0, 0.0))
    metrics.listing_done.labels("b", LIST_REPOS).set(1)  # what is tried now cannot be listed
    assert Loop("listRepos of b", 3.0, 0.0) not in reader.values().loops


def test_an_indexer_is_read() -> None:
    registry = CollectorRegistry()
    metrics = IndexerMetrics(registry, [FIREHOSE_LIVE, FIREHOSE_BACKFILL], [])
    metrics.misplaced.inc(2)
    metrics.stale.labels(FIREHOSE_BACKFILL).inc(4)
    metrics.batch_size.labels(FIREHOSE_BACKFILL).observe(10)
    assert readings.Reader(registry, "indexer").values().written == (
        Written(FIREHOSE_LIVE, 0.0, 0.0, 2.0), Written(FIREHOSE_BACKFILL, 10.0, 4.0, 0.0),
    )  # fmt: skip


def test_missing_metrics_are_named() -> None:
    registry = CollectorRegistry()
    FindingMetrics(registry, (FIREHOSE_LIVE,))
    missing = readings.missing_metrics(registry, "indexer")
    assert "indexer_batches_total" in missing
    assert "rsky_finding" not in missing
