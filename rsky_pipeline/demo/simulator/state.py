"""The final state of a network: the facts from which the truth is worked out.

A simulated world knows them; they can also be found by folding the frames that it published.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    LabelsMessage,
    SyncMessage,
    decode_frame,
)
from rsky_pipeline.demo.simulator.labels import Key, Standing
from rsky_pipeline.demo.simulator.mix import POST, POST_GATE, THREAD_GATE
from rsky_pipeline.demo.simulator.world import INDEXED_PREFIXES, World


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


def fold(frames: Iterable[bytes], handles: Mapping[str, str]) -> NetworkState:
    """Return the state after frames; `handles` are those that resolve, with their DIDs.

    Raises InvalidDataError for a frame that cannot be read and KeyError for a missing record.
    """
    state = NetworkState()
    by_did = {did: handle for handle, did in handles.items()}

    def account(did: str) -> AccountState:
        return state.accounts.setdefault(did, AccountState(by_did.get(did)))

    for frame in frames:
        message = decode_frame(frame)
        match message:
            case CommitMessage():
                _fold_commit(state, account(message.did), message)
            case AccountMessage():
                its = account(message.did)
                its.active, its.status = message.active, message.status
            case IdentityMessage():
                account(message.did)
            case SyncMessage():
                root = read_car(message.blocks).roots[0]
                account(message.did).commits.append((str(root), message.rev))
            case LabelsMessage():
                _fold_labels(state, message)
    return state


def _fold_commit(state: NetworkState, its: AccountState, message: CommitMessage) -> None:
    blocks = read_car(message.blocks).blocks
    indexed = False
    for op in message.ops:
        uri = f"at://{message.did}/{op.path}"
        collection, _, rkey = op.path.partition("/")
        indexed = indexed or collection.startswith(INDEXED_PREFIXES)
        if op.cid is None:
            state.records.pop(uri, None)
            state.deleted.add(uri)
            continue
        state.records[uri] = RecordState(str(op.cid), blocks[op.cid], message.time)
        state.deleted.discard(uri)
        if collection in {THREAD_GATE, POST_GATE}:
            state.gated.add(f"at://{message.did}/{POST}/{rkey}")
    if indexed:
        its.commits.clear()
        its.indexed = True
    its.commits.append((str(message.commit), message.rev))


def _fold_labels(state: NetworkState, message: LabelsMessage) -> None:
    for label in message.labels:
        key = (label["src"], label["uri"], label.get("cid") or "", label["val"])
        new = Standing(bool(label.get("neg")), label["cts"], label.get("exp"))
        known = state.labels.get(key)
        if known is None or (known.cts, known.neg) < (new.cts, new.neg):
            state.labels[key] = new
