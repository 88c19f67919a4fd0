"""For each alert: series that make it fire, when to look, and the labels that it then has."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scenario:
    """Series at one value a minute (Prometheus' notation), and what fires at a minute."""

    series: dict[str, str]
    minute: int
    labels: dict[str, str] = field(default_factory=dict)
    quiet_at: int | None = None  # a minute at which it must not fire yet


STREAM = 'stream="firehose_live"'
GROUP = f'{STREAM}, group="firehose_group"'
PROCESS = 'process="indexer-1", role="indexer"'
PROCESS_LABELS = {"process": "indexer-1", "role": "indexer"}
GROUP_LABELS = {"stream": "firehose_live", "group": "firehose_group"}


def finding(name: str, value: int, minute: int, subject: str = "") -> Scenario:
    """Return the scenario of a finding that is there from the third minute on."""
    labels = {"finding": name} | ({"subject": subject} if subject else {})
    series = f'rsky_finding{{finding="{name}", subject="{subject}", job="rsky-ingester"}}'
    return Scenario({series: f"0 0 {value}x15"}, minute, labels, quiet_at=1)


SCENARIOS: dict[str, Scenario] = {
    "RskyProcessDown": Scenario(
        {'up{job="rsky-indexer", instance="i"}': "1x2 0x10"}, 8,
        {"job": "rsky-indexer", "instance": "i"}, quiet_at=4,
    ),
    "RskyCrashLoop": Scenario(
        {f"rsky_process_crash_looping{{{PROCESS}}}": "0 0 1x5"}, 4, PROCESS_LABELS, quiet_at=1
    ),
    "RskyProcessNotReady": Scenario(
        {f"rsky_process_up{{{PROCESS}}}": "1 1 0x10"}, 8, PROCESS_LABELS, quiet_at=5
    ),
    "RskyProcessRestarting": Scenario(
        {f"rsky_process_restarts_total{{{PROCESS}}}": "0x9 1 2 3 4 5"}, 14, PROCESS_LABELS,
        quiet_at=9,
    ),
    "RskyMemoryHigh": Scenario(
        {f"rsky_process_resident_bytes{{{PROCESS}}}": "1e8 4e8x15"}, 13, PROCESS_LABELS, quiet_at=9
    ),
    "RskyRedisUnavailable": finding("redis", 2, 4),
    "RskyEvictionPolicy": finding("eviction", 2, 4),
    "RskyRedisRefusesWrites": Scenario(
        {'ingester_store_retries_total{action="rejected"}': "0 0 0+5x10"}, 8, quiet_at=1
    ),
    "RskyDatabaseUnavailable": finding("database", 2, 4),
    "RskyNoRelay": finding("no_relay", 2, 5),
    "RskyCursorRefused": finding("cursor_refused", 2, 4, "relay.test"),
    "RskyLabelerAway": finding("labeler_stalled", 1, 8, "labeler.test"),
    "RskyBsyncAway": finding("bsync", 1, 8),
    "RskyBsyncRefuses": finding("bsync_refused", 2, 4),
    "RskyBsyncReplaced": finding("bsync_replaced", 2, 4, "mute"),
    "RskySecondIngester": finding("second_ingester", 2, 4),
    "RskyGapRepairFailed": finding("gap_repair", 2, 4, "relay.test"),
    "RskyDirectoryAway": finding("directory", 2, 8),
    "RskyRelaySilent": finding("relay_stalled", 2, 3, "relay.test"),
    "RskyRelayStalled": finding("relay_stalled", 1, 8, "relay.test"),
    "RskyBackpressure": Scenario(
        {'rsky_finding{finding="back_pressure", subject="firehose_live", job="rsky-ingester"}':
         "0 1x15",
         'rsky_finding{finding="back_pressure", subject="repo_backfill", job="rsky-ingester"}':
         "1x16"}, 13, {"subject": "firehose_live"}, quiet_at=9,
    ),
    "RskyFallingBehind": Scenario(
        {f"rsky_stream_oldest_unacked_seconds{{{GROUP}}}": "10 400x15"}, 13, GROUP_LABELS,
        quiet_at=9,
    ),
    "RskyIndexerStalled": Scenario(
        {'rsky_finding{finding="consumer_stall", subject="firehose_live", job="rsky-ingester"}':
         "0 0 2x5"}, 3, {"finding": "consumer_stall", "subject": "firehose_live"}, quiet_at=1,
    ),
    "RskyBackfillStalled": Scenario(
        {'rsky_stream_group_lag{stream="repo_backfill", group="g"}': "5x60",
         "backfiller_repos_processed_total": "7x60",
         "backfiller_records_extracted_total": "0+9x10 90x50"}, 45, quiet_at=20,
    ),
    "RskyGraveFinding": Scenario(
        {'rsky_finding{finding="polluted_stream", subject="firehose_live", job="rsky-indexer"}':
         "0 0 2x5"}, 3, {"finding": "polluted_stream", "subject": "firehose_live"}, quiet_at=1,
    ),
    "RskyFinding": Scenario(
        {'rsky_finding{finding="redis_memory", subject="", job="rsky-ingester"}': "0 1x5"}, 4,
        {"finding": "redis_memory"}, quiet_at=1,
    ),
    "RskyDeadLetters": Scenario(
        {f"rsky_stream_dead_letters{{{STREAM}}}": "0 0 3x5"}, 5, {"stream": "firehose_live"},
        quiet_at=1,
    ),
    "RskyDeadLettersGrow": Scenario(
        {f"rsky_stream_dead_letters{{{STREAM}}}": "0x15 0+50x20"}, 30,
        {"stream": "firehose_live"}, quiet_at=14,
    ),
    "RskyUnexpectedErrors": Scenario(
        {"indexer_unexpected_errors_total": "0 0 0+60x20"}, 15, quiet_at=2
    ),
    "RskyRefusesRecords": Scenario(
        {"indexer_expected_errors_total": "0+60x40",
         "indexer_events_processed_total": "0+600x40"}, 35, quiet_at=10,
    ),
    "RskyReposFail": Scenario(
        {"backfiller_repos_failed_total": "0+30x60", "backfiller_repos_processed_total": "0+10x60"},
        50, quiet_at=10,
    ),
    "RskyForgedCommits": Scenario(
        {'ingester_verifications_total{verdict="forged"}': "0 0 0 2x20"}, 6, quiet_at=2
    ),
}  # fmt: skip
