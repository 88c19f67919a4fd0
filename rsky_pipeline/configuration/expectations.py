"""How a healthy pipeline looks, derived from the settings. Pure."""

from dataclasses import dataclass, fields

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import (
    BSYNC_LIVE,
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_STREAMS,
    ROLES,
)

BSYNC_MARK = 10_000  # entries: operations of users, which are few
WHOLE_NETWORK = "bsky.network"  # and the relays below it
_DEFAULTS = {item.name: item.default for item in fields(Settings)}


@dataclass(frozen=True, slots=True)
class Band:
    """Live events a second that are expected; `why_not` is the reason if they are not checked."""

    low: float
    high: float
    why_not: str = ""


def expected_band(settings: Settings) -> Band:
    """Return the configured band; the default one holds for relays of the whole network only.

    Any other relay may be a quiet one.
    """
    low, high = settings.expected_rate_min, settings.expected_rate_max
    defaults = (_DEFAULTS["expected_rate_min"], _DEFAULTS["expected_rate_max"])
    if (low, high) == defaults and not any(_has_all(relay.host) for relay in settings.relays):
        why = "no relay of the whole network is followed and no expected_rate_min and _max are set"
        return Band(low, high, why)
    return Band(low, high)


def high_water_marks(settings: Settings) -> dict[str, int]:
    """Return the high-water mark of every stream that something is appended to."""
    bsync = {BSYNC_LIVE: min(BSYNC_MARK, settings.live_high_water_mark)}
    return {
        FIREHOSE_LIVE: settings.live_high_water_mark,
        LABEL_LIVE: settings.live_high_water_mark,
        **dict.fromkeys(REPO_STREAMS, settings.repo_high_water_mark),
        FIREHOSE_BACKFILL: settings.backfill_high_water_mark,
        **(bsync if settings.bsync_url else {}),
    }


def expected_groups(settings: Settings) -> dict[str, str]:
    """Return the consumer group of every stream that a role consumes."""
    names = {"indexer": settings.indexer_group, "backfiller": settings.backfiller_group}
    return {stream: names[role.name] for role in ROLES for stream in role.consumes}


def _has_all(host: str) -> bool:
    """Return whether a relay is known to send the events of the whole network."""
    return host == WHOLE_NETWORK or host.endswith(f".{WHOLE_NETWORK}")
