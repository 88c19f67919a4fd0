"""Every setting of the pipeline: type, unit, default, meaning and the names it is known by.

A setting is declared once, as a field of `Settings`; the TOML file, the environment, the flags,
`config show` and docs/configuration.md are all derived from these declarations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.proxy import Proxy, parse_proxy
from rsky_pipeline.configuration.topology import ROLE_NAMES


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """The declaration of a setting beyond its default, for the loader and the reports."""

    help: str
    unit: str = ""
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    legacy_environment: tuple[str, ...] = ()  # names of the original services, first one wins
    secret: bool = False  # never printed: the password in a URL, or, if `hidden`, the whole text
    hidden: bool = False
    # What a change needs: a restart of workers (`roles`, empty means all); a start of the
    # supervisor, which uses it itself; nothing, since each command reads it.
    applies: Literal["restart", "start", "command"] = "restart"
    roles: tuple[str, ...] = ()


def setting(default: Any, help: str, **info: Any) -> Any:
    """Declare a setting with its default; see `SettingInfo` for the keywords."""
    declared = SettingInfo(help, **info)
    # A secret stays out of repr(), and so out of tracebacks and logs.
    return field(default=default, repr=not declared.secret, metadata={"setting": declared})


Verify = Literal["none", "signature", "full"]
Validation = Literal["lenient", "strict"]
InitialCursor = Literal["live", "oldest"] | int
LabelSignatures = Literal["require", "check", "none"]
EnumerationSource = Literal["list_repos", "by_collection", "both"]
LOG_LEVELS = ("debug", "info", "warning", "error")
LogFormat = Literal["auto", "text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective configuration that all roles share. Hosts are validated, not normalised:
    a host without a scheme means TLS (`wss://`, `https://`)."""

    # --- where things are -------------------------------------------------------------------
    relay_hosts: tuple[str, ...] = setting(
        ("bsky.network",),
        "Relays to follow, each a host or a URL (ws://, wss://, http://, https://).",
        legacy_environment=("INGESTER_RELAY_HOSTS", "RELAY_HOSTS", "INGESTER_HOSTS"),
    )
    labeler_hosts: tuple[str, ...] = setting(
        (),
        "Labelers to follow, each a host or a URL.",
        legacy_environment=("INGESTER_LABELER_HOSTS", "LABELER_HOSTS"),
        roles=("ingester",),
    )
    plc_url: str = setting(
        "https://plc.directory",
        "The did:plc directory.",
        legacy_environment=("PLC_URL",),
    )
    follow_plc_export: bool = setting(
        False,
        "Follow the /export of the did:plc directory, where its operator allows that: documents of "
        "accounts that change are fetched anew at once, whatever relays say.",
    )
    identity_cache_seconds: int = setting(
        86_400,
        "How long a DID document, and a key from it, counts without being looked up again, unless "
        "a relay or the directory's export says that it changed.",
        unit="s",
        minimum=1,
    )
    handle_resolver_url: str | None = setting(
        None,
        "Server that resolves all handles (com.atproto.identity.resolveHandle). Unset: DNS and "
        "HTTPS of each handle's host.",
        roles=("indexer",),
    )
    bsync_url: str | None = setting(
        None,
        "The AppView's bsync service (its BSKY_BSYNC_URL), also on this machine or a private "
        "network. Unset: mutes, bookmarks, drafts and settings of users are not read.",
    )
    bsync_key: str | None = setting(
        None,
        "One of BSYNC_API_KEYS of bsync.",
        secret=True,
        hidden=True,
        roles=("ingester",),
    )
    http_proxy: str | None = setting(
        None,
        "Proxy for all connections to relays, labelers, PDSes, the directory and hosts of handles: "
        "http://[user:password@]host:port, or https://. Never used for this machine.",
        legacy_environment=("HTTPS_PROXY", "https_proxy"),
        secret=True,
    )
    no_proxy: tuple[str, ...] = setting(
        (),
        "Hosts that are connected to without http_proxy: names (with all below them), addresses, "
        "networks, each with or without a port.",
        legacy_environment=("NO_PROXY", "no_proxy"),
    )
    redis_url: str | None = setting(
        None,
        "Redis or Valkey (redis://, rediss://, unix://, redis+sentinel://HOST,HOST/NAME). Unset: "
        "an embedded Valkey is started.",
        legacy_environment=("REDIS_URL",),
        secret=True,
        applies="start",
    )
    database_url: str | None = setting(
        None,
        "PostgreSQL >= 14 (postgresql://). Unset: an embedded PostgreSQL is started.",
        legacy_environment=("DATABASE_URL", "DB_POSTGRES_URL"),
        secret=True,
        applies="start",
    )
    embedded_database_port: int = setting(
        0,
        "Port of this machine at which the embedded PostgreSQL can be reached, for an AppView; "
        "`config show` prints the URL. 0: by a socket of the pipeline's account alone.",
        minimum=0,
        maximum=65_535,
        applies="start",
    )
    database_schema: str = setting(
        "bsky",
        "Schema of the AppView's tables (letters and underscores).",
        legacy_environment=("DB_POSTGRES_SCHEMA",),
        applies="start",
    )
    data_dir: Path | None = setting(
        None,
        "Embedded stores and run-time files. Unset: $STATE_DIRECTORY, else "
        "$XDG_STATE_HOME/rsky-pipeline, else ~/.local/state/rsky-pipeline.",
        applies="start",
    )
    run_dir: Path | None = setting(
        None,
        "Control sockets and locks. Unset: $RUNTIME_DIRECTORY, else data_dir/run.",
        applies="start",
    )

    # --- relays and labelers -------------------------------------------------------------------
    initial_cursor: InitialCursor = setting(
        "live",
        "Where to start on a relay without a stored cursor: live, oldest, or a sequence number.",
        legacy_environment=("FIREHOSE_INITIAL_CURSOR",),
        roles=("ingester",),
    )
    verify: Verify = setting(
        "full",
        "Check of live commits: none (hashes of records only), signature (with the account's key) "
        "or full (also that the operations led from the tree before to the signed one).",
        choices=("none", "signature", "full"),
        roles=("ingester",),
    )
    collections: tuple[str, ...] = setting(
        ("app.bsky.", "chat.bsky.", "com.germnetwork.declaration"),
        "Collections to index: NSIDs, or prefixes that end in a dot. Records without a table "
        "of their own go into record alone; app.bsky. and chat.bsky. are what the AppView stores.",
        legacy_environment=("RECORD_COLLECTION_ALLOWLIST",),
    )
    repair_gaps: bool = setting(
        True,
        "Repair gaps in a relay's events as they are noticed: list its repos, and fetch those that "
        "are further than ours.",
        roles=("ingester",),
    )
    label_signatures: LabelSignatures = setting(
        "require",
        "Check of labels: require (only those that their labeler signed), check (all but those "
        "with a wrong signature) or none.",
        choices=("require", "check", "none"),
        roles=("ingester",),
    )
    enumerate_repos: bool = setting(
        True,
        "Page each relay's listRepos into repo_backfill, so that history is fetched.",
        roles=("ingester",),
    )
    enumeration_source: EnumerationSource = setting(
        "list_repos",
        "The listings to page: list_repos (all repos), by_collection (listReposByCollection for "
        "each of enumeration_collections), or both. While list_repos is stuck, by_collection "
        "stands in.",
        choices=("list_repos", "by_collection", "both"),
        roles=("ingester",),
    )
    enumeration_collections: tuple[str, ...] = setting(
        ("app.bsky.actor.profile",),
        "Collections whose repos listReposByCollection is asked for.",
        roles=("ingester",),
    )
    enumeration_interval_hours: int = setting(
        168,
        "From one beginning of a complete listing to the next.",
        unit="h",
        minimum=1,
        roles=("ingester",),
    )
    enumeration_requests_per_minute: int = setting(
        300,
        "Listing requests to one host.",
        unit="/min",
        minimum=1,
        maximum=60_000,
        roles=("ingester",),
    )
    discover_repos_per_minute: int = setting(
        600,
        "Repos that appear in live events and are not known yet, queued to be fetched, at most; "
        "without enumerate_repos there are none. 0 leaves them to the listing.",
        unit="/min",
        minimum=0,
        maximum=100_000,
        roles=("ingester",),
    )
    resync_pause_seconds: int = setting(
        60,
        "A repo whose chain of commits breaks is fetched again at once; if it breaks again within "
        "this time, only when the time is over.",
        unit="s",
        minimum=1,
        maximum=3_600,
        roles=("ingester",),
    )
    allow_private_hosts: bool = setting(
        False,
        "Let PDS and handle hosts be private or loopback addresses and plain http. Only for tests "
        "and closed networks.",
    )

    # --- high-water marks: a producer slows down, and never discards, above them -------------
    live_high_water_mark: int = setting(
        100_000,
        "Length of firehose_live and of label_live above which the ingester pauses; of bsync_live "
        "10,000, if this is not less.",
        unit="entries",
        minimum=1,
        legacy_environment=("INGESTER_FIREHOSE_STREAM_HIGH_WATER_MARK", "INGESTER_HIGH_WATER_MARK"),
    )
    repo_high_water_mark: int = setting(
        100_000,
        "Length of repo_backfill above which enumeration pauses.",
        unit="entries",
        minimum=1,
        legacy_environment=("INGESTER_REPO_STREAM_HIGH_WATER_MARK", "INGESTER_HIGH_WATER_MARK"),
    )
    backfill_high_water_mark: int = setting(
        500_000,
        "Length of firehose_backfill above which the backfiller pauses.",
        unit="entries",
        minimum=1,
        legacy_environment=("BACKFILLER_FIREHOSE_STREAM_HIGH_WATER_MARK",),
    )

    # --- expectations, for `status`, `verify`, `monitor` and the findings of running workers ---
    expected_roles: tuple[str, ...] = setting(
        ROLE_NAMES,
        "Roles that have to run on this host: `status` and `verify` fail where one does not. Set "
        "it where others run on other hosts.",
        applies="command",
    )
    expected_rate_min: int = setting(
        100,
        "Events a second into firehose_live below which something is wrong; 0 checks nothing. The "
        "defaults of both bounds hold for bsky.network and the relays below it only.",
        unit="events/s",
        minimum=0,
    )
    expected_rate_max: int = setting(
        3_000,
        "Events a second into firehose_live above which something is wrong.",
        unit="events/s",
        minimum=1,
    )

    # --- ingester ---------------------------------------------------------------------------
    ingester_batch_size: int = setting(
        500,
        "Events appended at once, at most.",
        unit="events",
        minimum=1,
        maximum=10_000,
        legacy_environment=("INGESTER_BATCH_SIZE",),
        roles=("ingester",),
    )
    ingester_batch_timeout_ms: int = setting(
        100,
        "How long an incomplete batch waits for more events.",
        unit="ms",
        minimum=1,
        maximum=60_000,
        legacy_environment=("INGESTER_BATCH_TIMEOUT_MS",),
        roles=("ingester",),
    )
    ingester_idle_timeout_seconds: int = setting(
        60,
        "A relay that sends nothing for this long is reconnected if it is usually busy; one that "
        "is usually quiet, or said nothing so far, less often.",
        unit="s",
        minimum=1,
        roles=("ingester",),
    )

    # --- backfiller -------------------------------------------------------------------------
    backfiller_concurrency: int = setting(
        20,
        "Downloads at once. Slow ones step aside, so that there may be up to four times as many.",
        unit="repos",
        minimum=1,
        maximum=1_000,
        legacy_environment=("BACKFILLER_CONCURRENCY",),
        roles=("backfiller",),
    )
    backfiller_http_timeout_seconds: int = setting(
        60,
        "Longest silence of a PDS during a download.",
        unit="s",
        minimum=1,
        legacy_environment=("BACKFILLER_HTTP_TIMEOUT_SECS",),
        roles=("backfiller",),
    )
    backfiller_host_concurrency: int = setting(
        8,
        "Downloads from one host at once.",
        unit="repos",
        minimum=1,
        maximum=100,
        roles=("backfiller",),
    )
    backfiller_host_rate: int = setting(
        10,
        "Requests to one host, at most; fewer where its rate limit is lower.",
        unit="requests/s",
        minimum=1,
        maximum=10_000,
        roles=("backfiller",),
    )
    backfiller_directory_rate: int = setting(
        100,
        "Look-ups in the did:plc directory, at most.",
        unit="requests/s",
        minimum=1,
        maximum=100_000,
        roles=("backfiller",),
    )
    backfiller_min_rate: int = setting(
        1_024,
        "A download that is slower than this, over backfiller_http_timeout_seconds, is ended.",
        unit="bytes/s",
        minimum=0,
        roles=("backfiller",),
    )
    backfiller_repo_timeout_seconds: int = setting(
        3_600,
        "Longest download of one repo.",
        unit="s",
        minimum=1,
        roles=("backfiller",),
    )
    backfiller_max_repo_mb: int = setting(
        2_048,
        "Largest repo that is downloaded.",
        unit="MB",
        minimum=1,
        roles=("backfiller",),
    )
    backfiller_disk_mb: int = setting(
        8_192,
        "Temporary files in data_dir for repos that do not fit into backfiller_memory_mb.",
        unit="MB",
        minimum=1,
        roles=("backfiller",),
    )
    backfiller_max_attempts: int = setting(
        12,
        "Attempts at a repo that fail because of that repo, before it becomes a dead letter.",
        minimum=1,
        legacy_environment=("BACKFILLER_MAX_RETRIES",),
        roles=("backfiller",),
    )
    backfiller_host_patience_hours: int = setting(
        168,
        "How long a repo is tried whose host fails for everybody. Then it is left to the next "
        "listing; a job that repairs something becomes a dead letter.",
        unit="h",
        minimum=0,
        roles=("backfiller",),
    )
    backfiller_retry_initial_ms: int = setting(
        5_000,
        "Wait before the second attempt; doubles for each further one, with jitter.",
        unit="ms",
        minimum=1,
        legacy_environment=("BACKFILLER_RETRY_INITIAL_BACKOFF_MS",),
        roles=("backfiller",),
    )
    backfiller_retry_max_ms: int = setting(
        3_600_000,
        "Longest wait between two attempts.",
        unit="ms",
        minimum=1,
        legacy_environment=("BACKFILLER_RETRY_MAX_BACKOFF_MS",),
        roles=("backfiller",),
    )
    backfiller_memory_mb: int = setting(
        128,
        "Repo bytes held in memory at once, over all repos in flight; more goes to disk.",
        unit="MB",
        minimum=16,
        roles=("backfiller",),
    )

    # --- indexer ----------------------------------------------------------------------------
    indexer_batch_size: int = setting(
        2_000,
        "Events applied in one PostgreSQL transaction, at most.",
        unit="events",
        minimum=1,
        maximum=20_000,
        legacy_environment=("INDEXER_BATCH_SIZE",),
        roles=("indexer",),
    )
    indexer_backfill_share_percent: int = setting(
        10,
        "Part of the applying time that firehose_backfill is guaranteed while firehose_live, "
        "label_live or bsync_live lags; otherwise it has all that they leave.",
        unit="%",
        minimum=1,
        maximum=90,
        roles=("indexer",),
    )
    validation: Validation = setting(
        "lenient",
        "Records that are indexed: lenient (those that the AppView can read) or strict (those that "
        "the official indexer accepts). `db rejected` lists the others.",
        choices=("lenient", "strict"),
    )
    handle_lookups: int = setting(
        20,
        "Handles that an indexer looks up at the same time.",
        minimum=1,
        maximum=1_000,
        roles=("indexer",),
    )
    indexer_group: str = setting(
        "firehose_group",
        "Consumer group on firehose_live, firehose_backfill, label_live and bsync_live.",
        legacy_environment=("INDEXER_GROUP",),
    )
    backfiller_group: str = setting(
        "repo_backfill_group",
        "Consumer group on repo_backfill.",
        legacy_environment=("BACKFILLER_GROUP",),
    )
    claim_idle_seconds: int = setting(
        60,
        "Pending entries of a consumer that is idle for this long are taken over.",
        unit="s",
        minimum=1,
        roles=("backfiller", "indexer"),
    )
    max_deliveries: int = setting(
        5,
        "Deliveries of an entry that crashes its worker before it becomes a dead letter: the first "
        "two beside other entries, the others alone.",
        minimum=2,
        roles=("backfiller", "indexer"),
    )

    seen_port: int = setting(
        0,
        "Port at which the first indexer of this host serves UpdateNotificationSeen to bsync "
        "(BSYNC_DATAPLANE_URLS), without which an AppView since 0.0.278 forgets which "
        "notifications were seen. 0: none.",
        minimum=0,
        maximum=65_535,
        roles=("indexer",),
    )
    seen_host: str = setting(
        "127.0.0.1",
        "Address of seen_port. The token goes over it in clear.",
        roles=("indexer",),
    )
    seen_token: str | None = setting(
        None,
        "Token that bsync has to know for seen_port: its BSYNC_DATAPLANE_AUTH_TOKEN.",
        secret=True,
        hidden=True,
        roles=("indexer",),
    )

    # --- processes --------------------------------------------------------------------------
    ingester_workers: int = setting(
        1,
        "Ingester processes.",
        minimum=1,
        maximum=1,
        applies="start",
    )
    backfiller_workers: int = setting(
        1,
        "Backfiller processes.",
        minimum=1,
        maximum=64,
        applies="start",
    )
    indexer_workers: int = setting(
        1,
        "Indexer processes.",
        minimum=1,
        maximum=64,
        applies="start",
    )
    ready_timeout_seconds: int = setting(
        120,
        "A worker that is not ready after this long is stopped and retried.",
        unit="s",
        minimum=1,
        applies="start",
    )
    stop_timeout_seconds: int = setting(
        30,
        "Time for a worker to drain and exit before it is forced.",
        unit="s",
        minimum=1,
        applies="start",
    )

    # --- deployment -------------------------------------------------------------------------
    binary_path: Path | None = setting(
        None,
        "The installed program file, which units start and `deploy` replaces. Unset: "
        "/usr/local/bin/rsky-pipeline for units; `deploy` asks systemd or the running supervisor.",
        applies="command",
    )
    backups_kept: int = setting(
        5,
        "Earlier program files that `deploy` keeps beside the current one.",
        minimum=1,
        applies="command",
    )

    # --- observability ----------------------------------------------------------------------
    metrics_host: str = setting(
        "127.0.0.1",
        "Address of the metrics and health ports.",
        applies="start",
    )
    ingester_metrics_port: int = setting(
        9090,
        "First metrics port of the ingester; 0 picks a free one.",
        minimum=0,
        maximum=65_535,
        roles=("ingester",),
    )
    indexer_metrics_port: int = setting(
        9091,
        "First metrics port of the indexer; 0 picks a free one.",
        minimum=0,
        maximum=65_535,
        roles=("indexer",),
    )
    backfiller_metrics_port: int = setting(
        9092,
        "First metrics port of the backfiller; 0 picks a free one.",
        minimum=0,
        maximum=65_535,
        legacy_environment=("BACKFILLER_METRICS_PORT",),
        roles=("backfiller",),
    )
    supervisor_metrics_port: int = setting(
        9093,
        "Metrics port of the supervisor; 0 picks a free one. A supervisor of a single role has "
        "this port (ingester), the next one (backfiller), or the one after it (indexer).",
        minimum=0,
        maximum=65_535,
        applies="start",
    )
    log_level: str = setting("info", "Least severe log lines shown.", choices=LOG_LEVELS)
    log_format: LogFormat = setting(
        "auto",
        "text (one coloured line), json, or auto: text on a terminal and json otherwise.",
        choices=("auto", "text", "json"),
    )

    @property
    def relays(self) -> tuple[Endpoint, ...]:
        """Return the relays, each in the one spelling that its cursor has."""
        return tuple(parse_endpoint(host) for host in self.relay_hosts)

    @property
    def labelers(self) -> tuple[Endpoint, ...]:
        """Return the labelers, each in the one spelling that its cursor has."""
        return tuple(parse_endpoint(host) for host in self.labeler_hosts)

    @property
    def proxy(self) -> Proxy | None:
        """Return the proxy for connections to other hosts, None where there is none."""
        return parse_proxy(self.http_proxy, self.no_proxy) if self.http_proxy else None

    def workers(self, role: str) -> int:
        """Return how many processes a role runs."""
        count: int = getattr(self, f"{role}_workers")
        return count

    def metrics_port(self, role: str) -> int:
        """Return the first metrics port of a role; 0 means any free port."""
        port: int = getattr(self, f"{role}_metrics_port")
        return port


def declarations() -> Mapping[str, SettingInfo]:
    """Return the declaration of every setting by its name, in the order they are written."""
    return {item.name: item.metadata["setting"] for item in fields(Settings)}
