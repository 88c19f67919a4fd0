"""The catalogue is what the processes declare, and the original services' names are in it."""

from prometheus_client import CollectorRegistry

from rsky_pipeline.observability.catalogue import PROCESSES, VITAL, declared, own_metrics
from rsky_pipeline.observability.ingester import IngesterMetrics

# The 21, 23 and 12 metrics of the original services, without the prefix of the role.
ORIGINAL = {
    "ingester": """firehose_events_total firehose_create_events_total firehose_update_events_total
        firehose_delete_events_total firehose_filtered_operations_total stream_events_total
        errors_total labeler_events_total labels_written_total backfill_repos_fetched_total
        backfill_repos_written_total backfill_fetch_errors_total backfill_cursor_skips_total
        firehose_live_length firehose_backfill_length label_live_length repo_backfill_length
        backpressure_active websocket_connections events_in_memory backfill_complete""",
    "indexer": """events_processed_total create_events_total update_events_total
        delete_events_total repo_events_total account_events_total identity_events_total
        db_writes_total errors_total expected_errors_total unexpected_errors_total
        post_events_total like_events_total repost_events_total follow_events_total
        block_events_total profile_events_total labels_processed_total labels_added_total
        labels_removed_total ack_failures_total pending_messages active_tasks""",
    "backfiller": """repos_processed_total repos_failed_total repos_dead_lettered_total
        records_extracted_total records_filtered_total retries_attempted_total
        car_fetch_errors_total car_parse_errors_total verification_errors_total repos_waiting
        repos_running output_stream_length""",
}
# What the deployment plan looks for at each port.
SEARCHED = {
    "ingester": "ingester_firehose_messages_total",
    "indexer": "indexer_records_inserted_total",
    "backfiller": "backfiller_repos_processed_total",
}


def test_every_name_of_the_original_services_is_declared() -> None:
    for role, names in ORIGINAL.items():
        wanted = {f"{role}_{name}" for name in names.split()} | {SEARCHED[role]}
        assert wanted - declared(role).keys() == set()


def test_counters_end_in_total_and_every_metric_says_what_it_counts() -> None:
    for process in PROCESSES:
        for name, metric in declared(process).items():
            assert name == metric.name
            assert metric.help
            assert "|" not in metric.help
            assert name.endswith("_total") == (metric.kind == "counter")


def test_labels_are_read_back() -> None:
    metrics = {metric.name: metric for metric in own_metrics("indexer")}
    assert metrics["indexer_queue_seconds"].labels == ("stream",)
    assert metrics["indexer_queue_seconds"].kind == "histogram"
    assert metrics["indexer_refused_total"].labels == ("reason",)


def test_an_ingester_that_lists_no_repos_exports_everything_too() -> None:
    registry = CollectorRegistry()
    IngesterMetrics(registry, disconnect_reasons=["closed"], relays=["h"], labelers=["l"],
                    resync_reasons=["sync"])  # fmt: skip
    exported = {sample.name for metric in registry.collect() for sample in metric.samples}
    assert {metric.name for metric in own_metrics("ingester")} <= exported
    for metric in registry.collect():
        assert metric.samples, f"{metric.name} has no series from the start"


def test_the_metrics_that_matter_are_declared() -> None:
    known = {name for process in PROCESSES for name in declared(process)}
    assert VITAL.keys() <= known
