"""`rsky-pipeline trace`: where is this record?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import Invocation, operator_command, subjects_argument
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.diagnosis import Diagnosis
    from rsky_pipeline.operations.subjects import NamedSubject
    from rsky_pipeline.operations.trace import Traced


@operator_command(name="trace")
@subjects_argument("subject", metavar="SUBJECT", many=False)
@click.option("--limit", type=click.IntRange(1), default=200_000, show_default=True,
              help="Newest entries of each stream that are searched.")  # fmt: skip
def command(run: Invocation, subject: "NamedSubject", limit: int) -> int:
    """Find a record or an account: at its PDS, in a stream, dead-lettered, indexed.

    Exit codes: 0 it is visible, 2 malformed, 6 it is not (hidden, on its way, deleted, missing), 69
    Redis or PostgreSQL cannot be asked, or the PDS where only it has the answer.
    """
    from dataclasses import asdict

    from rsky_pipeline.operations.diagnosis import diagnose
    from rsky_pipeline.operations.trace import trace

    (named,) = run.subjects([subject])
    found = trace(run.settings, named, limit=limit, on_progress=say)
    diagnosis = diagnose(found)
    run.answer({"verdict": asdict(diagnosis), **found.document()}, lambda: _show(found, diagnosis))
    if found.redis.problem or found.database.problem or diagnosis.state == "unknown":
        return ExitCode.UNAVAILABLE
    return ExitCode.OK if diagnosis.state == "visible" else ExitCode.DIFFERENCES


def _show(found: "Traced", diagnosis: "Diagnosis") -> None:
    _show_places(found)
    line()
    line(f"{diagnosis.state}: {'; '.join(diagnosis.reasons)}")
    if diagnosis.remedy:
        line(f"to do: {diagnosis.remedy}")


def _show_places(found: "Traced") -> None:
    pds, redis, database = found.pds, found.redis, found.database
    there = {True: f"has it ({pds.cid})", False: "does not have it", None: ""}[pds.present]
    state = pds.problem or pds.state or there or f"is at rev {pds.rev}"
    line(f"PDS        {pds.host or '-'} ({pds.handle or 'no handle'}): {state}")
    passed = {True: "has read beyond it", False: "has not read so far", None: "unknown"}
    unselected = "" if found.firehose.selected else "; its collection is not selected"
    line(f"firehose   {passed[found.firehose.passed]}{unselected}")
    for entry in redis.entries:
        states = ", ".join(f"{group}: {text}" for group, text in entry.groups.items())
        line(f"stream     {entry.stream} {entry.id} ({entry.time}) {entry.kind} "
                   f"rev {entry.rev or '-'}; {states or 'no group yet'}")  # fmt: skip
    for letter in redis.letters:
        line(f"dead       {letter.stream} {letter.id} ({letter.time}) {letter.reason}: "
                   f"{letter.error} ({letter.attempts} attempts)")  # fmt: skip
    _show_searched(found)
    if database.problem:
        line(f"database   {database.problem}")
        return
    for name, value in (
        ("record", database.record), ("tables", database.tables or None),
        ("post", _known(database.flags) or None), ("duplicate", database.duplicate_of),
        ("deleted", database.tombstone), ("complete", database.complete_rev),
        ("account", database.actor),
        ("event", database.account_event and _status(database.account_event)),
        ("synced", database.synced_rev), ("erased", database.erased),
        *(("blocked", dict(block)) for block in database.blocks),
        ("backfill", database.backfill), ("records", database.records or None),
    ):  # fmt: skip
        if value is not None:
            line(f"{name:<10} {_line(value)}")
    for log, text in database.bsync.items():
        line(f"bsync      {log} is applied up to operation {text}")
    for each in database.private:
        line(f"operation  {_operation(each)}")
    for label in database.labels:
        line(f"label      {label['val']} on {label['uri']} by {label['src']}")


def _show_searched(found: "Traced") -> None:
    redis = found.redis
    if redis.problem:
        line(f"streams    {redis.problem}")
        return
    cut = [item for item in redis.searched if item.entries < item.of]
    total = sum(item.entries for item in redis.searched)
    limits = ", ".join(f"{item.stream}: {item.entries:,} of {item.of:,}" for item in cut)
    line(f"searched   {total:,} entries" + (f"; NOT everything: {limits}" if cut else ""))


def _known(flags: Mapping[str, bool | None]) -> dict[str, str]:
    """Write the flags of a post; NULL stands for one that nothing has decided yet."""
    words = {True: "yes", False: "no", None: "unknown"}
    return {name: words[value] for name, value in flags.items()}


def _status(event: Mapping[str, Any]) -> dict[str, Any]:
    """Write an account event; one that makes the account active has no other status."""
    status = "active" if event["active"] else event["status"] or "unknown"
    return {"time": event["time"], "status": status}


def _operation(found: Mapping[str, Any]) -> str:
    """Write the last operation of bsync about an item, and the AppView's rows of it."""
    what = f"{found['namespace']} {found['key']}".strip() or "all mutes of accounts and lists"
    rows = {True: "stored", False: "removed, or overtaken", None: "no row of its own"}
    shown = {True: "", False: "; not shown: no CREATE of it stands", None: ""}
    stored = rows[found["stored"]] + (shown[found["shown"]] if found["stored"] else "")
    return f"{found['log']} {found['id']} by {found['actor']}: {what}: {stored}"


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {'-' if item is None else item}" for key, item in value.items())
    return str(value)
