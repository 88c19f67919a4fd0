"""Which streams each role consumes and produces; start and stop order follow from it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

FIREHOSE_LIVE = "firehose_live"
FIREHOSE_BACKFILL = "firehose_backfill"
REPO_BACKFILL_HIGH = "repo_backfill_high"
REPO_BACKFILL = "repo_backfill"  # the only one of the original services
REPO_BACKFILL_LOW = "repo_backfill_low"
REPO_STREAMS = (REPO_BACKFILL_HIGH, REPO_BACKFILL, REPO_BACKFILL_LOW)  # most urgent first
LABEL_LIVE = "label_live"
BSYNC_LIVE = "bsync_live"
STREAMS = (FIREHOSE_LIVE, FIREHOSE_BACKFILL, *REPO_STREAMS, LABEL_LIVE, BSYNC_LIVE)


@dataclass(frozen=True, slots=True)
class RoleDeclaration:
    """A worker role and its place in the data flow."""

    name: str
    consumes: tuple[str, ...]
    produces: tuple[str, ...]
    database: bool = True  # uses PostgreSQL


# Declared in no particular order: `start_order` computes it.
ROLES: tuple[RoleDeclaration, ...] = (
    RoleDeclaration(
        "indexer",
        consumes=(FIREHOSE_LIVE, FIREHOSE_BACKFILL, LABEL_LIVE, BSYNC_LIVE),
        produces=(),
    ),
    RoleDeclaration("backfiller", consumes=REPO_STREAMS, produces=(FIREHOSE_BACKFILL,)),
    RoleDeclaration(
        "ingester",
        consumes=(),
        produces=(FIREHOSE_LIVE, *REPO_STREAMS, LABEL_LIVE, BSYNC_LIVE),
        database=False,
    ),
)
ROLE_NAMES: tuple[str, ...] = tuple(sorted(role.name for role in ROLES))


def start_order(
    names: Collection[str] = ROLE_NAMES, declared: Sequence[RoleDeclaration] = ROLES
) -> tuple[str, ...]:
    """Return these roles with every producer before the consumers of its streams.

    The order is computed from all declared roles, so a selection keeps it. Raises ValueError if
    the data flow has a cycle.
    """
    waiting = sorted(declared, key=lambda role: role.name)
    order: list[str] = []
    while waiting:
        blocked = {stream for role in waiting for stream in role.produces}
        ready = [role for role in waiting if blocked.isdisjoint(role.consumes)]
        if not ready:
            names = ", ".join(role.name for role in waiting)
            raise ValueError(f"the roles {names} consume each other's streams in a circle")
        order += [role.name for role in ready]
        waiting = [role for role in waiting if role not in ready]
    return tuple(name for name in order if name in names)


def stop_order(names: Collection[str] = ROLE_NAMES) -> tuple[str, ...]:
    """Return these roles with every consumer before the producers of its streams."""
    return tuple(reversed(start_order(names)))
