"""The final state of a network: the facts from which the truth is worked out."""

from dataclasses import dataclass, field

from rsky_pipeline.demo.simulator.labels import Key, Standing
from rsky_pipeline.demo.simulator.world import World


@dataclass(frozen=True, slots=True)
class RecordState:
    """A record that stands: its CID, its block, and the time of its frame."""

    cid: str
    block: bytes
    published: str


@dataclass(slots=True)
class AccountState:
    """An account. `commits` (CID, rev): the last that changed indexed records, and later ones."""

    handle: str | None
    active: bool = True
    status: str | None = None
    commits: list[tuple[str, str]] = field(default_factory=list)
    indexed: bool = False  # whether any commit changed indexed records


@dataclass(slots=True)
class NetworkState:
    """Everything that stands; records by uri."""

    records: dict[str, RecordState] = field(default_factory=dict)
    accounts: dict[str, AccountState] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)  # uris deleted on the stream
    gated: set[str] = field(default_factory=set)  # posts that had a gate
    labels: dict[Key, Standing] = field(default_factory=dict)


def state_of(world: World) -> NetworkState:
    """Return the state of a simulated network."""
    state = NetworkState(
        deleted=set(world.deleted), gated=set(world.gated), labels=dict(world.labeler.standing)
    )
    for account in world.accounts:
        if not account.born:
            continue
        state.accounts[account.did] = AccountState(
            account.handle if account.handle_resolves else None,
            account.active, account.status, list(account.standing), account.indexed,
        )  # fmt: skip
        for path, item in account.repo.items():
            state.records[account.uri(path)] = RecordState(
                str(item.cid), item.block, world.text(item.published)
            )
    return state
