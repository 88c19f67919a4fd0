"""Rebuilds the rows that records make, where they are not what the records say.

For each account the rows are compared (`derived_rows`), a page of records at a time. Records whose
rows differ then go the way of an update that changes nothing: the indexer's own code writes their
rows (`write_collections`), under the locks that it takes for a batch, so live events of the account
come before or after. Only rows that differ are written, and counts of what they count are
recounted. Notifications stay as they are but for wrong ones and those that are known to be missing,
so nobody is notified twice. At last the account is compared again.

An account is one step of a rebuild. How far it is stands in `rsky_pipeline.rebuild`, written with
the rows, so that a rebuild that was killed goes on, and its report counts everything once.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import orjson

from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import DatabaseError, TransactionConflictError
from rsky_pipeline.database.isolation import retry_conflicts
from rsky_pipeline.indexer.accounts.actors import create_actors, forget_actors, lock_actors
from rsky_pipeline.indexer.collections.declaration import Collection, looked_at_by_others
from rsky_pipeline.indexer.collections.notifications import BatchNotifications
from rsky_pipeline.indexer.collections.values import Delete, Put, collection_of
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.duplicates import forget_duplicates
from rsky_pipeline.indexer.core.entries import now_text
from rsky_pipeline.indexer.core.locks import ReferencesBusyError, lock_references
from rsky_pipeline.indexer.core.plan import BatchPlan
from rsky_pipeline.indexer.core.statements import delete
from rsky_pipeline.indexer.core.write import write_collections
from rsky_pipeline.observability.build import build
from rsky_pipeline.operations.derived_rows import (
    NOTIFICATIONS,
    Revs,
    RowDifference,
    check_notifications,
    compare_rows,
    fetch_puts,
    fetch_revs,
    snapshot,
)
from rsky_pipeline.operations.recount import recount_in
from rsky_pipeline.operations.repo_readings import record_readings
from rsky_pipeline.repos.repo import RepoPaths
from rsky_pipeline.runtime.errors import described

BATCH_RECORDS = 500  # that are written in one transaction
MOST_ROUNDS = 3  # comparisons of an account; after the last one nothing is written
PAGE_ACCOUNTS = 1_000
MAX_CONFLICTS = 20
SAVE_SECONDS = 2.0  # between notes of the position, where nothing was written
EXAMPLES = 20
_UNNOTIFIED = (NOTIFICATIONS, "missing")

_ACCOUNTS = "SELECT did FROM actor WHERE did > %s ORDER BY did LIMIT %s"
_HAS_RECORDS = "SELECT 1 FROM record WHERE did = %s LIMIT 1"
_WRONG = "DELETE FROM notification WHERE id = ANY(%b::bigint[])"
_BEGIN = """
INSERT INTO rsky_pipeline.rebuild AS known (scope) VALUES (%s)
ON CONFLICT (scope) DO UPDATE SET updated_at = now() RETURNING known.after, known.report
"""
_SAVE = """
UPDATE rsky_pipeline.rebuild SET after = %s, report = %s, updated_at = now() WHERE scope = %s
"""
_CONTENTS = """
SELECT uri, ARRAY[cid, json] FROM record
WHERE (rev IS NULL OR rev COLLATE "C" <= %s) AND uri = ANY(%b::text[])
"""
_RESTORE = """
UPDATE record r SET cid = n.cid, json = n.json
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(uri, cid, json)
WHERE r.uri = n.uri AND (r.rev IS NULL OR r.rev COLLATE "C" <= %s)
"""
_TAKEN_DOWN = """
SELECT uri, "takedownRef" FROM "{}" WHERE uri = ANY(%b::text[]) AND "takedownRef" IS NOT NULL
"""
_TAKE_DOWN = """
UPDATE "{}" r SET "takedownRef" = n.ref FROM unnest(%b::text[], %b::text[]) AS n(uri, ref)
WHERE r.uri = n.uri
"""
_END = "DELETE FROM rsky_pipeline.rebuild WHERE scope = %s"


@dataclass(slots=True)
class Report:
    """What a rebuild has found and written, over all of its runs."""

    accounts: int = 0
    records: int = 0  # compared
    rows: Counter[str] = field(default_factory=Counter)  # "table kind": differences put right
    left: int = 0  # differences that were still there, or came meanwhile
    damaged: int = 0  # records whose content is not in the database
    failed: int = 0  # accounts
    examples: list[str] = field(default_factory=list)  # of what is left, damaged or failed

    @property
    def written(self) -> int:
        """Differences that were put right."""
        return self.rows.total()

    def name(self, text: str) -> None:
        """Keep an example."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)

    def add(self, other: "Report") -> None:
        """Add the findings about an account; its rows were added when they were written."""
        self.accounts += other.accounts
        self.records += other.records
        self.left += other.left
        self.damaged += other.damaged
        self.failed += other.failed
        for text in other.examples:
            self.name(text)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "accounts": self.accounts, "records": self.records, "written": self.written,
            "rows": dict(sorted(self.rows.items())), "left": self.left, "damaged": self.damaged,
            "failed": self.failed, "examples": self.examples,
        }  # fmt: skip

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Report":
        """Return the report that `document` made."""
        names = ("accounts", "records", "left", "damaged", "failed")
        numbers = {name: int(document.get(name, 0)) for name in names}
        rows = Counter[str](document.get("rows", {}))
        return cls(**numbers, rows=rows, examples=list(document.get("examples", ())))

    def copy(self) -> "Report":
        """Return one to go on with."""
        return replace(self, rows=Counter(self.rows), examples=list(self.examples))


class RecordRate:
    """Bounds how many records are looked at in a second; 0 is no bound."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()

    def __call__(self, records: int) -> None:
        """Wait until so many records more are allowed; blocks."""
        if self._rate > 0:
            now = time.monotonic()
            self._next = max(self._next, now - 1.0) + records / self._rate
            if self._next > now:
                time.sleep(self._next - now)


class Rebuild:
    """A rebuild of accounts; `scope` names it, so that it is found again."""

    def __init__(
        self, database: Database, scope: str, collections: Mapping[str, Collection],
        everything: Mapping[str, Collection], rate: float, *, notify: bool = True,
    ) -> None:  # fmt: skip
        """`collections` are to be rebuilt, `everything` are all that are known.

        Without `notify` no notification is added, also where one is known to be missing.
        """
        self._notify = notify
        self.database = database
        self._scope = scope
        self._collections = collections
        self._everything = everything
        self._pace = RecordRate(rate)
        self._saved_at = time.monotonic()
        self._program = build().describe()
        ((self.after, document),) = database.query(_BEGIN, (scope,))
        # Another version may write other rows: it looks at all accounts.
        self.outdated = bool(self.after) and document.get("program") != self._program
        if self.outdated:
            self.after, document = "", {}
        self.resumed = bool(self.after)
        self.report = Report.read(document)
        self._stored = (self.after, self.report.copy())  # what a later run goes on from

    def accounts(self) -> Iterator[str]:
        """Yield all accounts that are not done yet, in the order of the database."""
        after = self.after
        while page := self.database.query(_ACCOUNTS, (after, PAGE_ACCOUNTS)):
            after = page[-1][0]
            yield from (did for (did,) in page)

    def run(self, dids: Iterable[str], progress: Callable[[Report], None]) -> None:
        """Rebuild accounts, which ascend; one that fails does not stop the others.

        Raises DatabaseError where PostgreSQL cannot be used; what is done stays done.
        """
        for did in dids:
            try:
                self.rebuild(did)
            except Exception as error:
                if isinstance(error, DatabaseError) and not (
                    error.follows_data or isinstance(error, TransactionConflictError)
                ):
                    raise
                self.fail(did, described(error))
            self.after = did
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                self.save()
            progress(self.report)
        self.end()

    def fail(self, did: str, message: str) -> None:
        """Note that an account could not be rebuilt."""
        self.report.accounts += 1
        self.report.failed += 1
        self.report.name(f"{did}: {message}")

    def save(self) -> None:
        """Store how far it is: all accounts up to `after` are done."""
        self._saved_at = time.monotonic()
        self._stored = (self.after, self.report.copy())
        self.database.execute(_SAVE, self._state())

    def end(self) -> None:
        """Forget how far it is: it is done."""
        self.database.execute(_END, (self._scope,))

    def rebuild(self, did: str) -> None:
        """Compare an account, write what differs, and compare it again.

        A live event between a comparison and the writing may leave another difference behind: of
        that one more round takes care.
        """
        own = Report(accounts=1)
        for number_of_round in range(MOST_ROUNDS):
            is_right = True
            for number, found in self._compare(did):
                wrong = [one for one in found if one.kind != "damaged"]
                if number_of_round == 0:
                    own.records += number
                    for one in found:
                        if one.kind == "damaged":
                            own.damaged += 1
                            own.name(f"{one.uri}: damaged: {one.detail}")
                if number_of_round < MOST_ROUNDS - 1 and wrong:
                    self._write(did, wrong)
                    is_right = False
                elif wrong:
                    own.left += len(wrong)
                    for one in wrong:
                        own.name(f"{one.uri}: {one.kind} in {one.table}: {one.detail}")
            if is_right:
                break
        self.report.add(own)

    def _compare(self, did: str) -> Iterator[tuple[int, list[RowDifference]]]:
        for number, found in compare_rows(partial(snapshot, self.database), did, self._collections):
            self._pace(number)
            if not self._notify:
                found = [one for one in found if (one.table, one.kind) != _UNNOTIFIED]
            yield number, found

    def _write(self, did: str, differences: Sequence[RowDifference]) -> None:
        by_uri: dict[str, list[RowDifference]] = {}
        for one in differences:
            by_uri.setdefault(one.uri, []).append(one)
        uris = sorted(by_uri)
        for start in range(0, len(uris), BATCH_RECORDS):
            some = uris[start : start + BATCH_RECORDS]
            rows = self.report.rows + Counter(
                f"{one.table} {one.kind}" for uri in some for one in by_uri[uri]
            )
            state = self._state(rows)
            write = partial(
                write_again, self.database, did, some, self._everything,
                lambda tx, state=state: tx.execute(_SAVE, state),  # type: ignore[misc]
                notify=self._notify,
            )  # fmt: skip
            retry_conflicts(write, MAX_CONFLICTS)
            self.report.rows = rows

    def _state(self, rows: Counter[str] | None = None) -> tuple[str, str, str]:
        """Return what is stored: `rows` are written for good, whatever account they are of."""
        after, report = self._stored
        found = dict(self.report.rows if rows is None else rows)
        document = report.document() | {"rows": found, "program": self._program}
        return after, orjson.dumps(document).decode(), self._scope


def scope_of(dids: Sequence[str] | None, collections: Sequence[str], source: str) -> str:
    """Return the name of a rebuild; `dids` is None for all accounts."""
    which = "all"
    if dids is not None:
        which = hashlib.sha256("\n".join(sorted(dids)).encode()).hexdigest()[:32]
    return " ".join([source, which, *sorted(collections)])


def restore_records(
    database: Database, paths: RepoPaths, collections: Mapping[str, Collection]
) -> int:
    """Give stored records the content of a verified repo; return how many had another one.

    Rows of later commits stay. Of those up to the repo's rev the signed tree has the only content.
    """
    rev, restored = paths.repo.commit.rev, 0
    readings = record_readings(paths, collections, now_text())
    puts = (reading.change for _, reading, _ in readings if reading is not None)
    while some := [put for put in islice(puts, BATCH_RECORDS) if isinstance(put, Put)]:
        stored: dict[str, list[str]] = dict(
            database.query(_CONTENTS, (rev, [put.uri for put in some]))
        )
        changed = [
            (put.uri, put.cid, put.json)
            for put in some
            if put.uri in stored and not _is_content(put, *stored[put.uri])
        ]
        if changed:
            with database.transaction() as tx:
                lock_actors(tx, {paths.repo.commit.did})
                restored += tx.execute(_RESTORE, (*transpose(sorted(changed)), rev))
    return restored


def _is_content(put: Put, cid: str, json: str) -> bool:
    """Return whether a stored record has this content; the order of its keys may be another one."""
    try:
        return cid == put.cid and (json == put.json or orjson.loads(json) == orjson.loads(put.json))
    except orjson.JSONDecodeError:
        return False


def write_again(
    database: Database,
    did: str,
    uris: Sequence[str],
    collections: Mapping[str, Collection],
    note: Callable[[Transaction], object] = lambda _: None,
    *,
    notify: bool = True,
) -> None:
    """Write the rows of some records of an account as if they came again, or remove them.

    `note` is called in the transaction. With `notify` notifications are added that are known to be
    missing. Raises DatabaseError.
    """
    looked_at: set[str] = set()
    with database.transaction() as tx:
        created = create_actors(tx, [did], {}, now_text())
    while True:
        try:
            with database.transaction() as tx:
                lock_actors(tx, {did})
                _write_again(tx, uris, collections, looked_at)
                _check_notifications(tx, uris, collections, fetch_revs(tx, did), notify)
                if created and not tx.query(_HAS_RECORDS, (did,)):  # only rows were left of it
                    forget_actors(tx, [did])
                note(tx)
                return
        except ReferencesBusyError as busy:
            looked_at |= busy.uris  # from now on they are waited for, in order


def _write_again(
    tx: Transaction, uris: Sequence[str], collections: Mapping[str, Collection],
    looked_at: Iterable[str],
) -> None:  # fmt: skip
    puts, damaged = fetch_puts(tx, uris, collections)
    here = {put.uri for put in puts}.union(damaged)
    gone = [Delete(uri, uri.split("/", 3)[2], "") for uri in uris if uri not in here]
    kinds = looked_at_by_others(collections.values())
    locks = lock_references(tx, [*puts, *gone], kinds, looked_at)
    counts = Counts()
    forget_duplicates(tx, sorted(item.uri for item in gone))
    _forget_traces(tx, puts, collections)
    # What others wrote about a record is theirs, and compared with their records.
    plan = BatchPlan(updates=puts, absent=gone)
    arrivals = {put.uri: place for place, put in enumerate(puts)}
    kept = _takedowns_of_others(tx, uris)
    write_collections(tx, plan, collections, counts, locks, arrivals, purging=True, rebuilding=True)
    for table, rows in kept.items():
        tx.execute(_TAKE_DOWN.format(table), transpose(rows))
    recount_in(tx, counts.touched())


def _takedowns_of_others(tx: Transaction, uris: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return takedowns that stand in the rows of tables, where somebody's AppView has them there.

    Such rows are deleted and made again.
    """
    found = {
        table: tx.query(_TAKEN_DOWN.format(table), (list(uris),)) for table in tx.forms.taken_down
    }
    return {table: rows for table, rows in found.items() if rows}


def _forget_traces(
    tx: Transaction, puts: Iterable[Put], collections: Mapping[str, Collection]
) -> None:
    """Remove rows that an update of the record would leave."""
    by_collection = _by_collection(puts)
    for nsid, some in by_collection.items():
        collection = collections[nsid]
        owners = sorted(put.uri for put in some)
        for side in collection.traces:
            tx.execute(
                f'DELETE FROM "{side.name}" WHERE "{side.owner}" = ANY(%b::text[])', (owners,)
            )
        if collection.table is not None:
            rowless = [put.uri for put in some if put.rows.main is None]
            delete(tx, collection.table, rowless)


def _check_notifications(
    tx: Transaction, uris: Sequence[str], collections: Mapping[str, Collection], revs: Revs,
    notify: bool,
) -> None:  # fmt: skip
    """Remove wrong notifications; with `notify` add those that are known to be missing."""
    puts, _ = fetch_puts(tx, uris, collections)
    batch = BatchNotifications()
    for nsid, some in _by_collection(puts).items():
        collection = collections[nsid]
        if collection.table is None:
            continue
        known = [put.uri for put in some]
        sql = f'SELECT uri FROM "{collection.table.name}" WHERE uri = ANY(%b::text[])'
        rows = {row[0] for row in tx.query(sql, (known,))}
        standing = [put for put in some if put.uri in rows]
        finished = {} if collection.finished is None else collection.finished(tx, standing)
        errors = check_notifications(tx, collection, known, standing, finished, revs)
        if errors.wrong:
            tx.execute(_WRONG, (sorted(number for number, _, _ in errors.wrong),))
        for put, one in errors.missing if notify else ():
            batch.add(replace(put, historical=False), one)
    batch.write(tx)


def _by_collection(puts: Iterable[Put]) -> dict[str, list[Put]]:
    found: dict[str, list[Put]] = {}
    for put in puts:
        found.setdefault(collection_of(put.uri), []).append(put)
    return found
