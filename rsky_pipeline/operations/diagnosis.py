"""Diagnoses a trace: whether the record is visible, and if not, the reason and remedy. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.selection import lifting, shown_block
from rsky_pipeline.operations.trace import AtPds, InDatabase, Traced
from rsky_pipeline.streams.names import BSYNC_LIVE

State = Literal[
    "visible", "hidden", "outdated", "on_its_way", "dead_letter", "deleted", "not_selected",
    "not_there", "blocked", "missing", "unknown",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result: a machine-readable state, the reasons, and the remedy."""

    state: State
    reasons: tuple[str, ...]
    remedy: str = ""


def diagnose(found: Traced) -> Diagnosis:
    """Return the answer for a record, or for an account."""
    if found.database.problem:
        return Diagnosis("unknown", (f"the database could not be asked: {found.database.problem}",))
    if not found.subject.collection:
        return _account(found)
    if found.database.record is not None:
        return _stored(found)
    return _absent(found)


def _stored(found: Traced) -> Diagnosis:
    record, pds = found.database.record or {}, found.pds
    why = tuple(_hiding(found.database))
    waiting = _waiting(found)
    if pds.present is False and not waiting:
        return Diagnosis("outdated", ("the PDS does not have it any more, the database does", *why),
                       _again(found))  # fmt: skip
    if pds.cid is not None and pds.cid != record["cid"] and not waiting:
        reason = f"the PDS has another version ({pds.cid}) than the database ({record['cid']})"
        return Diagnosis("outdated", (reason, *why), _again(found))
    if why:
        return Diagnosis("hidden", why)
    notes = (*_remarks(found.database), *waiting)
    return Diagnosis("visible", (f"indexed at {record['indexed_at']}", *notes))


def _absent(found: Traced) -> Diagnosis:
    database, redis, pds = found.database, found.redis, found.pds
    if not found.firehose.selected:
        return Diagnosis("not_selected", (f"{found.subject.collection} is not selected",),
                       "add it to `collections` and index the repo again")  # fmt: skip
    if waiting := _waiting(found):
        return Diagnosis("on_its_way", waiting, "wait, or see lag and pending of these groups")
    if letters := [each for each in redis.letters if each.stream != BSYNC_LIVE]:
        letter = letters[0]
        reason = f"a dead letter since {letter.time}: {letter.reason}: {letter.error}"
        return Diagnosis("dead_letter", (reason,),
                       f"{advised('dlq', 'retry', letter.stream, '--id', letter.id)} when the "
                       "reason is gone")  # fmt: skip
    if database.blocks:
        return Diagnosis("blocked", tuple(_blocked(database)), _unblock(database))
    if database.erased is not None and (pds.rev is None or pds.rev < database.erased):
        return Diagnosis("deleted", (_erased(database),))
    tombstone = database.tombstone
    if tombstone is not None and pds.present:
        reason = f"deleted at rev {tombstone['rev']}, and the PDS has it (again)"
        return Diagnosis("missing", (reason,), _again(found))
    if tombstone is not None:
        reason = f"deleted at rev {tombstone['rev']}, applied {tombstone['deleted_at']}"
        return Diagnosis("deleted", (reason,))
    if pds.state is not None:
        return Diagnosis("not_there", (_not_served(pds),))
    if pds.present is False:
        return Diagnosis(
            "not_there", ("the PDS does not have it: it was deleted or never existed",)
        )
    if pds.present is None:
        reason = f"nothing is known of it here, and its PDS could not be asked: {pds.problem}"
        return Diagnosis("unknown", (reason,), "try again when its PDS answers")
    return Diagnosis("missing", tuple(_how_it_was_lost(found)), _again(found))


def _unblock(database: InDatabase) -> str:
    commands = " and ".join(lifting(each["kind"], each["subject"]) for each in database.blocks)
    return f"{commands} to lift the block and fetch what was left out"


def _blocked(database: InDatabase) -> Iterator[str]:
    for block in database.blocks:
        reason = f" ({block['reason']})" if block["reason"] else ""
        subject = shown_block(block["kind"], block["subject"])
        yield f"the {block['kind']} {subject} is blocked since {block['since']}{reason}"


def _erased(database: InDatabase) -> str:
    return f"the account was erased up to {database.erased}, and its repo is not newer"


def _how_it_was_lost(found: Traced) -> Iterator[str]:
    yield "the PDS has it, and it is neither in the database nor in the searched part of Redis"
    if not found.redis.complete:
        yield "not everything in Redis was searched: see the limits, and --limit"
    if found.firehose.passed:
        yield "the ingester has read beyond it, so it will not arrive by itself"
    elif found.firehose.passed is False:
        yield "the ingester has not read that far yet: it will arrive"
    complete_rev, rev = found.database.complete_rev, found.pds.rev
    if complete_rev is not None:
        yield f"the repo was indexed as a whole at rev {complete_rev}; it is newer, or was refused"
    elif found.database.synced_rev is None:
        yield "nothing of this repo was ever indexed as a whole"
    if rev and found.database.synced_rev and found.database.synced_rev < rev:
        yield f"the account is indexed up to {found.database.synced_rev}, the PDS is at {rev}"


def _account(found: Traced) -> Diagnosis:
    database, pds = found.database, found.pds
    is_erased = database.erased is not None and (pds.rev or "") <= database.erased
    if waiting := _waiting(found):
        state: State = "on_its_way"
    elif database.actor is None and database.blocks:
        state = "blocked"
    elif is_erased and not database.records:
        state = "deleted"
    elif database.actor is None:
        state = "not_there" if pds.rev is None else "missing"
    else:
        state = "hidden" if any(_account_hiding(database)) else "visible"
    total = sum(database.records.values())
    reasons = [*_blocked(database), *_account_hiding(database)]
    reasons += [f"{total:,} records are indexed", *waiting]
    if is_erased:
        reasons.append(_erased(database))
    if pds.state:
        reasons.append(_not_served(pds))
    behind = pds.rev is not None and (database.synced_rev or "") < pds.rev
    if behind:
        reasons.append(f"indexed up to {database.synced_rev or '-'}, the PDS is at {pds.rev}")
    if database.backfill is not None:
        error = database.backfill["error"]
        reasons.append(f"backfill: {database.backfill['status']}{f': {error}' if error else ''}")
    remedy = _again(found) if (behind or state == "missing") and not is_erased else ""
    return Diagnosis(state, tuple(reasons), _unblock(database) if database.blocks else remedy)


def _not_served(pds: AtPds) -> str:
    if pds.state in ("IdentityNotFoundError", "NoPds") and pds.problem:
        return pds.problem  # no PDS was asked
    return f"the PDS does not serve the repo: {pds.state}"


def _waiting(found: Traced) -> tuple[str, ...]:
    return tuple(
        f"a {entry.kind} of rev {entry.rev or '?'} is in {entry.stream} ({entry.id}): "
        + ", ".join(f"{group} {state}" for group, state in entry.groups.items())
        for entry in found.redis.entries
        if entry.wanted and entry.stream != BSYNC_LIVE  # which is about it, and not itself
    )


def _hiding(database: InDatabase) -> Iterator[str]:
    record = database.record or {}
    if record.get("taken_down"):
        yield f"the record was taken down here ({record['taken_down']})"
    yield from _account_hiding(database)
    if database.duplicate_of is not None:
        yield f"a duplicate: {database.duplicate_of} stands for the same subject"
    elif database.main_table is not None and not database.tables.get(database.main_table):
        yield f"it has no row in {database.main_table}: a gate or rule of its kind refused it"
    for label in database.labels:
        if label["val"] in ("!takedown", "!suspend"):
            yield f"{label['src']} labels it {label['val']}, for clients that follow that labeler"


def _account_hiding(database: InDatabase) -> Iterator[str]:
    actor = database.actor
    if actor is None:
        yield "the account has no row in actor"
        return
    if actor["taken_down"]:
        yield f"the account was taken down here ({actor['taken_down']})"
    if actor["status"]:
        yield f"the account is {actor['status']}"


def _remarks(database: InDatabase) -> Iterator[str]:
    if database.flags.get("violatesThreadGate"):
        yield "left out of its thread: the root's thread gate forbids the reply"
    if database.flags.get("violatesEmbeddingRules"):
        yield "its quote is shown detached: the quoted post's gate forbids it"


def _again(found: Traced) -> str:
    command = advised("index-repo", found.subject.account)
    return f"{command} indexes the repo as its PDS has it"
