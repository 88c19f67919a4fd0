"""Every rule about the health of the pipeline: thresholds, remedies, alerts.

A rule judges one value: seconds, a share, a count. `Limits` are the thresholds that warn and fail;
history streams have their own, because they wait while live events take precedence. Workers
evaluate the `watched` rules every few seconds (as findings, named as in `rsky_finding`), `verify`
evaluates them over its window, and Prometheus through the alerts, all with the same thresholds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.configuration.topology import BSYNC_LIVE, FIREHOSE_LIVE, LABEL_LIVE

Status = Literal["pass", "warn", "fail", "skip"]
Severity = Literal["warning", "critical"]  # look today; look now
LIVE_STREAMS = (FIREHOSE_LIVE, LABEL_LIVE, BSYNC_LIVE)

HISTORY_SECONDS = 300.0  # how far back the samples of a worker go
LOOP_SECONDS = 120.0  # how far back tries without progress are counted
# The age of live events from which the ingester catches up, and reads them faster than they come.
CATCHING_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The thresholds that warn and fail; None if there is none."""

    warn: float | None = None
    fail: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of a rule; `{warn}`, `{fail}`, `{least}`, `{minutes}` in `expr` are the rule's, and
    `{finding}` its name in `rsky_finding`.

    `page` is a section of docs/runbook.md or a page of docs/.
    """

    name: str
    severity: Severity
    holds: str
    expr: str
    summary: str
    page: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition. `check` is its name in `verify`, without the subject."""

    name: str
    title: str
    remedy: str
    limits: Limits = Limits()
    history: Limits | None = None  # of streams of history, where they differ
    seconds: float = 0.0  # the window of a value
    least: float = 0.0  # the minimum count below which a share or a difference is not judged
    watched: bool = False  # by every worker, as a finding
    of_stream: bool = False
    of_relay: bool = False  # its subjects are hosts
    of_labeler: bool = False
    of_bsync: bool = False  # its subjects are logs
    finding: str = ""  # in `rsky_finding`, if it is not `name`
    check: str = ""
    alerts: tuple[Alert, ...] = ()

    def limits_of(self, subject: str) -> Limits:
        """Return the limits for a subject."""
        if self.history is None or subject in LIVE_STREAMS:
            return self.limits
        return self.history

    def verdict(self, value: float, subject: str = "") -> Status:
        """Judge a value."""
        limits = self.limits_of(subject)
        if limits.fail is not None and value >= limits.fail:
            return "fail"
        return "warn" if limits.warn is not None and value >= limits.warn else "pass"

    def expression(self, alert: Alert) -> str:
        """Return an alert's expression with the thresholds of this rule."""
        return (
            alert.expr.replace("{warn}", _number(self.limits.warn))
            .replace("{fail}", _number(self.limits.fail))
            .replace("{least}", _number(self.least))
            .replace("{minutes}", f"{self.seconds / 60:g}m")
            .replace("{finding}", self.finding or self.name)
        )


# A connection that fails once is opened again, and is no trouble.
STORE_SECONDS = 3.0
_LASTING = Limits(fail=STORE_SECONDS)

# The expression of an alert that fires while a finding fails.
FAILS = 'max by (finding, subject) (rsky_finding{finding="{finding}"}) == 2'
WARNS = 'max by (finding, subject) (rsky_finding{finding="{finding}"}) > 0'

ITS_LOG = "its log (`journalctl -u rsky-ROLE`, or data_dir/supervisor.log)"

# For a store that runs with the pipeline, in place of the remedy of REDIS or DATABASE.
START_PIPELINE = "start the pipeline: `rsky-pipeline start`"


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """The verdict of a rule on a subject, and its figure as text."""

    rule: Rule
    subject: str
    status: Status
    figure: str
    value: float | None = None
    alias: str = ""  # its name in `verify`, if it does not follow from rule and subject
    remedy: str = ""  # if it is not the rule's

    @property
    def check(self) -> str:
        """Return its name in `verify`: KIND or KIND:SUBJECT."""
        if self.alias:
            return self.alias
        kind = self.rule.check or self.rule.name
        return f"{kind}:{self.subject}" if self.subject else kind

    @property
    def to_do(self) -> str:
        """Return the remedy for an operator; empty for a good verdict."""
        if self.status in ("pass", "skip"):
            return ""
        return self.remedy or self.rule.remedy.replace("{subject}", self.subject)


def judged(rule: Rule, subject: str, value: float, figure: str) -> RuleVerdict:
    """Return the verdict of a rule for a value."""
    return RuleVerdict(rule, subject, rule.verdict(value, subject), figure, value)


# --- the worker itself ------------------------------------------------------------------------

HEARTBEAT = Rule(
    "heartbeat", "the event loop of a worker is stuck", f"see {ITS_LOG}", Limits(fail=15.0)
)
PROGRESS = Rule(
    "progress", "an activity of a worker does not progress", f"see {ITS_LOG}",
    Limits(fail=120.0),
)  # fmt: skip
STALL = Rule(
    "stall", "an activity has not progressed for so long that its worker is started again",
    f"see {ITS_LOG}", Limits(fail=300.0),
)  # fmt: skip
PROCESS = Rule(
    "process", "a process does not run, or is unhealthy",
    f"see `rsky-pipeline status` and {ITS_LOG}", least=3, seconds=900.0,
    alerts=(
        Alert(
            "RskyProcessDown", "critical", "2m", 'up{job=~"rsky-.*"} == 0',
            "{{ $labels.job }} at {{ $labels.instance }} does not answer",
            "runbook.md#a-process-is-down",
        ),
        Alert(
            "RskyCrashLoop", "critical", "1m", "rsky_process_crash_looping == 1",
            "{{ $labels.process }} ends again and again", "runbook.md#a-process-is-down",
        ),
        Alert(
            "RskyProcessNotReady", "warning", "5m", "rsky_process_up == 0",
            "{{ $labels.process }} has not been ready for five minutes",
            "runbook.md#a-process-is-down",
        ),
        Alert(
            "RskyProcessRestarting", "warning", "0m",
            "increase(rsky_process_restarts_total[{minutes}]) > {least}",
            "{{ $labels.process }} was started again more than three times in a quarter of an hour",
            "runbook.md#a-process-is-down",
        ),
    ),
)  # fmt: skip
WORKER_MEMORY = Rule(
    "worker_memory", "the memory of a worker exceeds the need of any load",
    "`rsky-pipeline restart ROLE`, and report it", Limits(warn=300e6),
    alerts=(
        Alert(
            "RskyMemoryHigh", "warning", "10m",
            'rsky_process_resident_bytes{role=~"ingester|indexer|backfiller"} > {warn}',
            "{{ $labels.process }} holds more than 300 MB, which no load should need",
            "troubleshooting.md",
        ),
    ),
)  # fmt: skip
DATA_DISK = Rule(
    "data_disk", "the disk of data_dir is nearly full",
    "make room on it (`df`, `df -i`), or move data_dir: large repos wait there, logs, and embedded "
    "stores",
    Limits(warn=0.9, fail=0.98), least=5e9, watched=True,
)  # fmt: skip
MISSING_METRICS = Rule(
    "missing_metrics", "declared metrics are not exported",
    "the worker is of another version than this command, or was built wrongly: deploy again",
    Limits(fail=1), watched=True, check="metrics",
)  # fmt: skip
LOG = Rule(
    "log", "the log cannot be written; its lines are lost, and everything else goes on",
    "make room where the log is (`df`, `df -i`)", Limits(warn=1), watched=True,
)  # fmt: skip
SEEN_PORT = Rule(
    "seen_port", "bsync cannot pass on what accounts have seen: seen_port cannot be opened",
    "free the port (`ss -ltnp` names its program), or set another seen_port, here and in "
    "BSYNC_DATAPLANE_URLS of bsync",
    Limits(fail=1), watched=True,
)  # fmt: skip
SEEN_DENIED = Rule(
    "seen_denied", "bsync cannot pass on what accounts have seen: it sends another token",
    "make seen_token and BSYNC_DATAPLANE_AUTH_TOKEN of bsync equal, restart the one that changes",
    Limits(warn=1), seconds=600.0, watched=True,
)  # fmt: skip
FINDINGS = Rule("findings", "the self-check of a worker finds a fault", f"see {ITS_LOG}")

# --- stores -----------------------------------------------------------------------------------

REDIS = Rule(
    "redis", "Redis does not answer", "check redis_url and the server", _LASTING, watched=True,
    alerts=(
        Alert(
            "RskyRedisUnavailable", "critical", "1m", FAILS, "Redis does not answer",
            "runbook.md#lose-redis",
        ),
    ),
)  # fmt: skip
REDIS_READ_ONLY = Rule(
    "redis_read_only", "Redis is a replica, and takes no writes",
    "point redis_url at the primary or at its sentinels; after a fail-over, wait for the new one",
    _LASTING, watched=True,
)  # fmt: skip
REDIS_CANNOT_SAVE = Rule(
    "redis_cannot_save", "Redis cannot save to its disk, and so refuses writes",
    "make room on the disk of Redis, or correct `dir` and its permissions: the log of Redis has "
    "the reason; writes go on by themselves after its next successful save",
    _LASTING, watched=True,
)  # fmt: skip
REDIS_FULL = Rule(
    "redis_full", "the memory of Redis is full, and so it refuses writes",
    "raise maxmemory, or lower the high-water marks; `rsky-pipeline streams list` shows what fits",
    _LASTING, watched=True,
)  # fmt: skip
REDIS_NO_REPLICAS = Rule(
    "redis_no_replicas", "Redis lacks replicas, and so refuses writes",
    "start the replicas of Redis, or lower min-replicas-to-write", _LASTING, watched=True,
)  # fmt: skip
REDIS_LOADING = Rule(
    "redis_loading", "Redis is loading its data after a start",
    "wait; `redis-cli INFO persistence` shows loading_loaded_perc", _LASTING, watched=True,
)  # fmt: skip
REDIS_BUSY = Rule(
    "redis_busy", "a script of another client keeps Redis busy",
    "`redis-cli SCRIPT KILL`, or FUNCTION KILL, and find the client that runs it", _LASTING,
    watched=True,
)  # fmt: skip
REDIS_DENIED = Rule(
    "redis_denied", "Redis denies a command or a key to the user of redis_url",
    "`redis-cli ACL LOG` shows which; allow it with ACL SETUSER, or correct redis_url", _LASTING,
    watched=True,
)  # fmt: skip
REDIS_REFUSES = Rule(
    "redis_refuses", "Redis refuses a command again and again",
    "see its answer in `rsky-pipeline status`: a key of another type, perhaps",
    _LASTING, watched=True,
)  # fmt: skip
REDIS_MEMORY = Rule(
    "redis_memory", "the memory of Redis is nearly used up; producers stop at 90%",
    "raise maxmemory; where streams hold it (`rsky-pipeline streams list`), lower the high-water "
    "marks, trim, or add consumers",
    Limits(warn=0.75, fail=0.85), watched=True, check="memory",
)  # fmt: skip
EVICTION = Rule(
    "eviction", "Redis evicts entries when it is full",
    "a queue must not be evicted: `redis-cli CONFIG SET maxmemory-policy noeviction`, and set it "
    "in the configuration of the server",
    Limits(fail=1), watched=True,
    alerts=(
        Alert(
            "RskyEvictionPolicy", "critical", "1m", FAILS,
            "Redis may evict entries that nobody has read", "runbook.md#lose-redis",
        ),
    ),
)  # fmt: skip
STORE_SETTINGS = Rule(
    "redis_settings", "a setting of Redis breaks a promise",
    "`rsky-pipeline config check` lists them", Limits(fail=1),
)  # fmt: skip
CAPACITY = Rule("capacity", "a high-water mark exceeds the memory of Redis", "lower the mark")
APPENDS = Rule(
    "appends", "Redis rejects entries of the ingester", f"see {ITS_LOG}",
    Limits(fail=1), seconds=120.0,
    alerts=(
        Alert(
            "RskyRedisRefusesWrites", "critical", "2m",
            'sum(rate(ingester_store_retries_total{action="rejected"}[{minutes}])) > 0',
            "Redis rejects entries of the ingester; its memory may be full",
            "runbook.md#lose-redis",
        ),
    ),
)  # fmt: skip
DATABASE = Rule(
    "database", "PostgreSQL cannot be reached", "see `rsky-pipeline db check` and database_url",
    _LASTING, watched=True,
    alerts=(
        Alert(
            "RskyDatabaseUnavailable", "critical", "1m", FAILS, "PostgreSQL cannot be reached",
            "runbook.md#lose-postgresql",
        ),
    ),
)  # fmt: skip
DATABASE_CONNECTIONS = Rule(
    "database_connections", "PostgreSQL or its pooler has no free connection",
    "raise max_connections, the CONNECTION LIMIT of the role or database, or the pool; "
    "`SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2` shows who "
    "holds them",
    _LASTING, watched=True,
)  # fmt: skip
DATABASE_DISK = Rule(
    "database_disk", "the disk of PostgreSQL is full", "make room on the disk of PostgreSQL",
    _LASTING, watched=True,
)  # fmt: skip
DATABASE_READ_ONLY = Rule(
    "database_read_only", "PostgreSQL takes no writes: a standby, or read-only by default",
    "point database_url at the primary; see default_transaction_read_only", _LASTING, watched=True,
)  # fmt: skip
DATABASE_DENIED = Rule(
    "database_denied", "PostgreSQL denies something to the role of database_url",
    "GRANT it to the role; its message is in `rsky-pipeline status`", _LASTING, watched=True,
)  # fmt: skip
DATABASE_LOCKED = Rule(
    "database_locked", "statements wait for a lock that another session holds",
    "wait for that session, or end it: SELECT pg_terminate_backend(PID)", _LASTING, watched=True,
)  # fmt: skip
DATABASE_CONFLICTS = Rule(
    "database_conflicts", "transactions conflict with those of others, or take too long",
    "see pg_stat_activity for long transactions, and the log of PostgreSQL", Limits(fail=60.0),
    watched=True,
)  # fmt: skip
DATABASE_REFUSES = Rule(
    "database_refuses", "PostgreSQL refuses a statement again and again",
    "see its message in `rsky-pipeline status`, and `rsky-pipeline db check`", _LASTING,
    watched=True,
)  # fmt: skip
SCHEMA = Rule(
    "schema", "the schema is not the expected one", "`rsky-pipeline db check` lists them",
    Limits(fail=1), watched=True,
)  # fmt: skip
PAIRING = Rule(
    "pairing", "Redis and the database are of different installations",
    "correct redis_url or database_url, or run `rsky-pipeline db pair --force`", Limits(fail=1),
)  # fmt: skip
DEPLOYMENT = Rule(
    "deployment", "a deployment was interrupted",
    "`rsky-pipeline deploy --resume` finishes it, `rsky-pipeline rollback` undoes it",
    Limits(fail=1),
)  # fmt: skip
REV_GUARD = Rule(
    "rev_guard", "older states overwrite newer ones",
    "stop the indexers: older states overwrite newer ones", Limits(fail=1),
)  # fmt: skip
RESURRECTED = Rule(
    "deleted_stays_deleted", "deleted records exist again",
    "another program writes to `record`: stop it, then index these repos again", Limits(fail=1),
)  # fmt: skip
REPLICA = Rule(
    "replica", "a replica of PostgreSQL is late",
    "look at the replica: its disk, its processor, and queries that hold its replay up "
    "(`max_standby_streaming_delay`)", Limits(warn=60.0),
)  # fmt: skip
RETAINED_WAL = Rule(
    "retained_wal", "a replica or a replication slot is far behind the log of PostgreSQL",
    "start the replica, or drop a slot that nobody reads (`pg_drop_replication_slot`) before the "
    "log fills the disk", Limits(warn=10e9),
)  # fmt: skip
# --- live events ------------------------------------------------------------------------------

RELAY = Rule(
    "relay", "a relay cannot be reached",
    "check relay_hosts, DNS and the network, or use another relay", seconds=300.0,
)  # fmt: skip
NO_RELAY = Rule(
    "no_relay", "no relay is connected",
    "check relay_hosts, DNS, the network and the relay; reading goes on from the cursor by itself",
    Limits(fail=5.0), watched=True,
    alerts=(
        Alert(
            "RskyNoRelay", "critical", "2m", FAILS, "The ingester follows no relay",
            "runbook.md#the-relay-is-away",
        ),
    ),
)  # fmt: skip
CURSOR_REFUSED = Rule(
    "cursor_refused", "a stored cursor does not fit its host, which was replaced or lost its state",
    "decide where to go on: `rsky-pipeline cursor reset {subject} --force` starts at "
    "initial_cursor, `rsky-pipeline cursor set {subject} SEQ` at any event; of a labeler both need "
    "--stream label_live",
    Limits(fail=1), watched=True, of_relay=True, of_labeler=True,
    alerts=(
        Alert(
            "RskyCursorRefused", "critical", "1m", FAILS,
            "The stored cursor does not fit {{ $labels.subject }}: `rsky-pipeline status` says "
            "more",
            "runbook.md#a-relay-did-not-send-everything",
        ),
    ),
)  # fmt: skip
LABELER_STALLED = Rule(
    "labeler_stalled", "a labeler cannot be reached",
    "check labeler_hosts, DNS, the network and the labeler; its labels are read from the cursor by "
    "themselves when it is back",
    Limits(warn=30.0), watched=True, of_labeler=True,
    alerts=(
        Alert(
            "RskyLabelerAway", "warning", "5m", WARNS,
            "The labeler {{ $labels.subject }} is away", "runbook.md#the-relay-is-away",
        ),
    ),
)  # fmt: skip
BSYNC = Rule(
    "bsync", "bsync cannot be read: mutes, bookmarks and settings of users stay as they are",
    "check bsync_url, bsync and the network to it; it is read from the cursors by itself when it "
    "is back",
    Limits(warn=30.0), watched=True,
    alerts=(
        Alert(
            "RskyBsyncAway", "warning", "5m", WARNS, "bsync cannot be read",
            "troubleshooting.md",
        ),
    ),
)  # fmt: skip
BSYNC_REFUSED = Rule(
    "bsync_refused", "bsync refuses to be read",
    "correct bsync_url or bsync_key (one of BSYNC_API_KEYS of bsync), and `rsky-pipeline restart "
    "ingester`; where another program answers, or an old bsync, replace it",
    Limits(fail=1), watched=True,
    alerts=(
        Alert(
            "RskyBsyncRefuses", "critical", "1m", FAILS, "bsync refuses to be read",
            "troubleshooting.md",
        ),
    ),
)  # fmt: skip
BSYNC_REPLACED = Rule(
    "bsync_replaced", "operations of bsync that were read are not there any more",
    "if bsync has another database now, `rsky-pipeline cursor reset {subject} --stream bsync_live "
    "--force` reads it from its beginning; else `rsky-pipeline cursor set {subject} SEQ --stream "
    "bsync_live` goes on",
    Limits(fail=1), watched=True, of_bsync=True,
    alerts=(
        Alert(
            "RskyBsyncReplaced", "critical", "1m", FAILS,
            "The log {{ $labels.subject }} of bsync is another one than before",
            "troubleshooting.md",
        ),
    ),
)  # fmt: skip
DIRECTORY = Rule(
    "directory", "the did:plc directory does not answer",
    "check plc_url, DNS, the network and http_proxy; commits whose keys are not known wait, and "
    "their repos are fetched when it answers",
    Limits(fail=30.0), seconds=120.0, watched=True,
    alerts=(
        Alert(
            "RskyDirectoryAway", "critical", "5m", FAILS, "The did:plc directory does not answer",
            "troubleshooting.md",
        ),
    ),
)  # fmt: skip
SECOND_INGESTER = Rule(
    "second_ingester", "another ingester writes into the same Redis",
    "stop one of them: both read everything, and set each other's cursors", Limits(fail=1),
    watched=True,
    alerts=(
        Alert(
            "RskySecondIngester", "critical", "1m", FAILS,
            "Two ingesters write into one Redis", "runbook.md#move-to-new-hosts",
        ),
    ),
)  # fmt: skip
GAP_REPAIR = Rule(
    "gap_repair", "the repair of a gap has failed",
    "see its error in `rsky-pipeline gaps list`; it is tried again every ten minutes, or now by "
    "`rsky-pipeline gaps repair`",
    Limits(fail=1), watched=True, of_relay=True,
    alerts=(
        Alert(
            "RskyGapRepairFailed", "warning", "1m", FAILS,
            "A gap of {{ $labels.subject }} could not be repaired",
            "runbook.md#a-relay-did-not-send-everything",
        ),
    ),
)  # fmt: skip
# `least`: -log of the probability of such a silence, by the relay's own habits of the last hours.
# 7 is one in a thousand. `seconds`: two relays whose newest events differ by less keep pace.
RELAY_STALLED = Rule(
    "relay_stalled", "a relay is away, far behind another one, or silent though it is usually busy",
    "nothing while another relay works; else check the relay and the network to it, or follow "
    "another relay as well (relay_hosts)",
    Limits(warn=30.0, fail=300.0), seconds=60.0, least=7.0, watched=True, of_relay=True,
    alerts=(
        Alert(
            "RskyRelaySilent", "critical", "0m", FAILS,
            "No relay works: {{ $labels.subject }} is away, far behind, or silent though it is "
            "usually busy",
            "runbook.md#the-relay-is-away",
        ),
        Alert(
            "RskyRelayStalled", "warning", "5m", WARNS,
            "{{ $labels.subject }} is away, far behind another relay, or silent though it is "
            "usually busy",
            "runbook.md#the-relay-is-away",
        ),
    ),
)  # fmt: skip
CLOCK = Rule(
    "clock", "the clocks of this host and a relay differ",
    "see whether NTP runs here: `timedatectl`",
    Limits(warn=5.0, fail=60.0), watched=True, of_relay=True, of_labeler=True,
)  # fmt: skip
RATE = Rule(
    "rate_out_of_band",
    "the rate of live events is outside of expected_rate_min to expected_rate_max",
    "`rsky-pipeline streams inspect firehose_live`; see connections and errors of the ingester",
    Limits(fail=1), seconds=10.0, watched=True, check="rate:firehose_live",
)  # fmt: skip
POLLUTED = Rule(
    "polluted_stream",
    "repo events are in the live stream, where only operations on records belong",
    "stop the program that writes them; `rsky-pipeline streams inspect {subject}` shows them, "
    "`rsky-pipeline streams purge {subject} --type repo` removes them",
    Limits(fail=1), seconds=30.0, watched=True, of_stream=True, check="pollution",
)  # fmt: skip
CURSOR_STUCK = Rule(
    "cursor_stuck", "a relay sends messages, and the cursor does not advance",
    "see the reason in `rsky-pipeline status`", Limits(fail=1), seconds=20.0, watched=True,
)  # fmt: skip
LATENCY = Rule(
    "latency", "events are old when they are indexed", "see the lag of ingester and indexer",
    Limits(warn=60.0, fail=600.0),
)  # fmt: skip
FORGED = Rule(
    "forged_commits", "a relay sends commits whose signature is wrong", "see troubleshooting.md",
    Limits(warn=1), seconds=600.0,
    alerts=(
        Alert(
            "RskyForgedCommits", "warning", "1m",
            'sum(increase(ingester_verifications_total{verdict="forged"}[{minutes}])) > 0',
            "A relay sent commits whose signature is wrong", "troubleshooting.md",
        ),
    ),
)  # fmt: skip

# --- streams and their consumers --------------------------------------------------------------

BACK_PRESSURE = Rule(
    "back_pressure", "a stream is at its high-water mark, so its producer waits",
    "see rate and lag of the consumers; add workers", Limits(warn=0.8, fail=1.0),
    history=Limits(warn=1.0), watched=True, of_stream=True, check="length",
)  # fmt: skip
HELD_UP = Rule(
    "held_up", "reading the relays is held up",
    "see rate and lag of the consumers, and the memory of Redis", Limits(warn=1 / 6), seconds=30.0,
    watched=True, of_stream=True, finding="back_pressure", check="back_pressure",
    alerts=(
        Alert(
            "RskyBackpressure", "warning", "10m",
            'max by (subject) (rsky_finding{finding="back_pressure",'
            'subject=~"firehose_live|label_live|bsync_live"}) > 0',
            "Reading from the relay has been held up for ten minutes; nothing is discarded",
            "runbook.md#fall-behind",
        ),
    ),
)  # fmt: skip
CONSUMER_STALL = Rule(
    "consumer_stall", "entries wait, and none is delivered",
    "see whether the group's workers run and their stores answer; "
    "`rsky-pipeline streams groups repair`",
    Limits(fail=20.0), history=Limits(fail=120.0), watched=True, of_stream=True, check="delivery",
    alerts=(
        Alert(
            "RskyIndexerStalled", "critical", "0m",
            'max by (finding, subject) (rsky_finding{finding="consumer_stall"}) > 0',
            "Entries of {{ $labels.subject }} wait and none is delivered",
            "runbook.md#fall-behind",
        ),
    ),
)  # fmt: skip
OLDEST = Rule(
    "oldest", "unfinished entries are old", "see rate, lag and errors of its workers",
    Limits(warn=60.0, fail=600.0), history=Limits(warn=86_400.0), watched=True, of_stream=True,
    check="oldest",
    alerts=(
        Alert(
            "RskyFallingBehind", "warning", "10m",
            'rsky:oldest_unacked_seconds:max{stream=~"firehose_live|label_live|bsync_live"} '
            "> {warn}",
            "The oldest entry of {{ $labels.stream }} that {{ $labels.group }} has to finish is "
            "{{ $value | humanizeDuration }} old",
            "runbook.md#fall-behind",
        ),
    ),
)  # fmt: skip
BALANCE = Rule(
    "balance", "entries arrive faster than they are consumed",
    "consumers do not keep up: add workers, or wait for the peak to end", Limits(warn=0.1),
    least=1_000,
)  # fmt: skip
UNREAD_REMOVED = Rule(
    "unread_removed", "entries were removed before a consumer group read them",
    "find the program that trims the stream; backfill the repos whose entries are lost",
    Limits(warn=1), watched=True, of_stream=True,
)  # fmt: skip
PENDING_WITHOUT_BODY = Rule(
    "pending_without_body", "entries were removed while a consumer held them",
    "find the program that trims the stream; `rsky-pipeline streams groups repair`",
    Limits(warn=1), watched=True, of_stream=True,
)  # fmt: skip
GROUP_REMADE = Rule(
    "group_remade", "a consumer group, or its stream, was deleted and made again",
    "nothing here: what was unfinished is read again. Find the client of Redis that deleted it",
    Limits(warn=1), seconds=900.0, watched=True, of_stream=True,
)  # fmt: skip
DEAD_LETTERS = Rule(
    "dead_letters", "entries could not be processed",
    "look at their reasons: `rsky-pipeline dlq list {subject}`", Limits(warn=1),
    alerts=(
        Alert(
            "RskyDeadLetters", "warning", "1m", "rsky:dead_letters:max >= {warn}",
            "{{ $value }} entries of {{ $labels.stream }} could not be processed",
            "runbook.md#look-into-dead-letters",
        ),
    ),
)  # fmt: skip
DEAD_LETTERS_GROW = Rule(
    "dead_letters_grow", "many entries could not be processed in a short time",
    "look at their reasons: `rsky-pipeline dlq list {subject}`", Limits(fail=100), seconds=900.0,
    check="dead_letters",
    alerts=(
        Alert(
            "RskyDeadLettersGrow", "critical", "5m",
            "delta(rsky:dead_letters:max[{minutes}]) > {fail}",
            "More than 100 entries of {{ $labels.stream }} in a quarter of an hour could not be "
            "processed",
            "runbook.md#look-into-dead-letters",
        ),
    ),
)  # fmt: skip

# --- work that fails --------------------------------------------------------------------------

NO_PROGRESS = Rule(
    "no_progress", "an activity fails again and again, without progress",
    f"the reason is in {ITS_LOG}; if a listing fails, set enumerate_repos to false",
    Limits(fail=3), seconds=15.0, watched=True,
)  # fmt: skip
STALE_WRITES = Rule(
    "stale_writes",
    "many backfilled writes are older than the stored state, and were refused",
    "find the program that queues old states again and again",
    Limits(warn=0.2), seconds=30.0, least=20, watched=True, of_stream=True, check="stale_writes",
)  # fmt: skip
INDEXER_ERRORS = Rule(
    "indexer_errors", "the indexer fails for reasons other than its data",
    f"see {ITS_LOG}", Limits(warn=0.1), seconds=300.0,
    alerts=(
        Alert(
            "RskyUnexpectedErrors", "warning", "5m",
            "sum(rate(indexer_unexpected_errors_total[{minutes}])) > {warn}",
            "The indexer fails for reasons other than its data", "troubleshooting.md",
        ),
    ),
)  # fmt: skip
REFUSED_RECORDS = Rule(
    "refused_records", "the indexer refuses many events", "see troubleshooting.md",
    Limits(warn=0.05),
    alerts=(
        Alert(
            "RskyRefusesRecords", "warning", "15m", "rsky:refused_ratio:rate5m > {warn}",
            "The indexer refuses more than one event in twenty", "troubleshooting.md",
        ),
    ),
)  # fmt: skip
BACKFILL = Rule(
    "backfill", "repos wait, and none is finished",
    "see backfiller_failures_total by reason and the backfiller's log", Limits(warn=1),
    seconds=900.0,
    alerts=(
        Alert(
            "RskyBackfillStalled", "warning", "15m",
            'sum(rsky:group_lag:max{stream=~"repo_backfill.*"}) > 0'
            " and sum(rate(backfiller_repos_processed_total[{minutes}])) == 0"
            " and sum(rate(backfiller_records_extracted_total[{minutes}])) == 0",
            "Repos wait and none is fetched", "troubleshooting.md",
        ),
    ),
)  # fmt: skip
FAILED_REPOS = Rule(
    "failed_repos", "many attempts at repos fail", "see troubleshooting.md", Limits(warn=0.5),
    alerts=(
        Alert(
            "RskyReposFail", "warning", "15m", "rsky:failed_repos_ratio:rate15m > {warn}",
            "More than half of the attempts at repos fail", "troubleshooting.md",
        ),
    ),
)  # fmt: skip

# By the name that an error of a store has for it (`StoreError.finding`).
OF_STORES = {
    rule.name: rule
    for rule in (
        *(REDIS, REDIS_READ_ONLY, REDIS_CANNOT_SAVE, REDIS_FULL, REDIS_NO_REPLICAS, REDIS_LOADING),
        *(REDIS_BUSY, REDIS_DENIED, REDIS_REFUSES),
        *(DATABASE, DATABASE_CONNECTIONS, DATABASE_DISK, DATABASE_READ_ONLY, DATABASE_DENIED),
        *(DATABASE_LOCKED, DATABASE_CONFLICTS, DATABASE_REFUSES, SCHEMA),
    )
}
# Judged by the roles themselves, not from samples.
OF_ROLES = frozenset(
    rule.name
    for rule in (
        *(NO_RELAY, RELAY_STALLED, CURSOR_REFUSED, LABELER_STALLED, CLOCK, SECOND_INGESTER),
        *(BSYNC, BSYNC_REFUSED, BSYNC_REPLACED),
        *(GAP_REPAIR, GROUP_REMADE, DIRECTORY, DATA_DISK, LOG, SEEN_PORT, SEEN_DENIED),
    )
)
RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
WATCHED = tuple(rule for rule in RULES if rule.watched)
# Findings about which an alert of their own says more; of the first, about failures as well.
_ALERTED = tuple(
    rule.finding or rule.name
    for rule in WATCHED
    if any("rsky_finding" in alert.expr for alert in rule.alerts)
)
_NOTICED = tuple(rule.finding or rule.name for rule in WATCHED if rule.alerts)
# A finding's value is 1 for a warning and 2 for a failure.
FINDING_ALERTS = (
    Alert(
        "RskyGraveFinding", "critical", "0m",
        f'max by (finding, subject) (rsky_finding{{finding!~"{"|".join(_ALERTED)}"}}) == 2',
        "{{ $labels.finding }} {{ $labels.subject }}: `rsky-pipeline status` says more",
        "runbook.md#watch",
    ),
    Alert(
        "RskyFinding", "warning", "1m",
        f'max by (finding, subject) (rsky_finding{{finding!~"{"|".join(_NOTICED)}"}}) == 1',
        "{{ $labels.finding }} {{ $labels.subject }}: `rsky-pipeline status` says more",
        "runbook.md#watch",
    ),
)  # fmt: skip


# By an alert, those about its consequences, which Alertmanager then keeps silent about, and
# findings that follow from it (of `FINDING_ALERTS`).
_STALLED = (
    "RskyBackfillStalled", "RskyBackpressure", "RskyFallingBehind", "RskyIndexerStalled",
    "RskyReposFail", "RskyUnexpectedErrors",
)  # fmt: skip
_RELAYS = ("RskyNoRelay", "RskyRelaySilent", "RskyRelayStalled")
_IDLE = ("back_pressure", "cursor_stuck", "no_progress", "oldest", "rate_out_of_band")
INHIBITED: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "RskyRedisUnavailable": (
        (*_STALLED, *_RELAYS, "RskyProcessNotReady", "RskyRedisRefusesWrites"), _IDLE
    ),
    "RskyDatabaseUnavailable": (
        (*_STALLED, "RskyGapRepairFailed", "RskyProcessNotReady"), _IDLE
    ),
    "RskyNoRelay": (_RELAYS[1:], ("no_progress", "rate_out_of_band")),
    "RskyCursorRefused": (_RELAYS, ("no_progress", "rate_out_of_band")),
    "RskyProcessDown": (_STALLED, _IDLE),
    "RskyCrashLoop": (
        (*_STALLED, "RskyProcessDown", "RskyProcessNotReady", "RskyProcessRestarting"), _IDLE
    ),
}  # fmt: skip


def finding_of(rule: Rule) -> str:
    """Return the name under which workers show a rule in `rsky_finding`."""
    return rule.finding or rule.name


def finding_series(
    streams: Iterable[str], relays: Iterable[str] = (), labelers: Iterable[str] = (),
    bsync: Iterable[str] = (),
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield finding and subject of every series that a worker shows from the start."""
    streams, relays, labelers = tuple(streams), tuple(relays), tuple(labelers)
    series: dict[tuple[str, str], None] = {}
    for rule in WATCHED:
        subjects: tuple[str, ...] = ("",)
        if rule.of_stream:
            subjects = streams
        elif rule.of_relay or rule.of_labeler:
            subjects = relays * rule.of_relay + labelers * rule.of_labeler
        elif rule.of_bsync:
            subjects = tuple(bsync)
        series |= dict.fromkeys((finding_of(rule), subject) for subject in subjects)
    yield from series


def rule_of(finding: str) -> Rule | None:
    """Return the rule of a finding, None for one of another version."""
    return next((rule for rule in WATCHED if finding_of(rule) == finding), None)


def finding_status(finding: str, *, failing: bool) -> Status:
    """Return the verdict of a worker's finding; a finding of another version warns."""
    rule = rule_of(finding)
    always_fails = rule is not None and rule.limits.warn is None
    return "fail" if failing or always_fails else "warn"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
