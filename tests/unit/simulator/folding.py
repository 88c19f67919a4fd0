"""The state of a network, found by folding the frames that it published."""

from collections.abc import Iterable, Mapping

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    IdentityMessage,
    LabelsMessage,
    SyncMessage,
    decode_frame,
)
from rsky_pipeline.demo.simulator.labels import Standing
from rsky_pipeline.demo.simulator.mix import POST, POST_GATE, THREAD_GATE
from rsky_pipeline.demo.simulator.state import AccountState, NetworkState, RecordState
from rsky_pipeline.demo.simulator.world import INDEXED_PREFIXES


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
