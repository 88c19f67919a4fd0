"""The `label` table: one row for (src, uri, cid, val), where the newest statement stands.

A negation is kept as a row, so that an older label that comes later cannot undo it. Of two
statements of the same millisecond the negation wins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rsky_pipeline.atproto.datetimes import normalize
from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.fields import (
    MAX_CID_BYTES,
    MAX_DID_BYTES,
    MAX_REFERENCE_BYTES,
)
from rsky_pipeline.streams.event import LabelEvent, MalformedEventError, decode_labels

MAX_VALUE_BYTES = 128
_UPSERT = """
INSERT INTO label AS known (src, uri, cid, val, neg, cts, exp)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::boolean[], %b::text[],
    %b::text[])
ON CONFLICT (src, uri, cid, val) DO UPDATE
SET neg = EXCLUDED.neg, cts = EXCLUDED.cts, exp = EXCLUDED.exp
WHERE (known.cts, known.neg, COALESCE(known.exp, ''))
    < (EXCLUDED.cts, EXCLUDED.neg, COALESCE(EXCLUDED.exp, ''))
RETURNING neg
"""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label as its row."""

    src: str
    uri: str
    cid: str
    val: str
    neg: bool
    cts: str
    exp: str | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The identity of a label: of one key one statement stands."""
        return self.src, self.uri, self.cid, self.val

    @property
    def age(self) -> tuple[str, bool, str]:
        """Orders statements of one key."""
        return self.cts, self.neg, self.exp or ""


@dataclass(frozen=True, slots=True)
class LabelReading:
    """The labels of an entry, and the reasons why others of it cannot be stored."""

    labels: tuple[LabelRow, ...] = ()
    refused: tuple[MalformedEventError, ...] = ()


def read_labels(fields: Mapping[bytes, bytes] | None) -> LabelReading:
    """Read an entry of `label_live`; labels that cannot be stored are refused one by one."""
    labels: list[LabelRow] = []
    refused: list[MalformedEventError] = []
    try:
        events = decode_labels(fields or {}, refused)
    except MalformedEventError as error:
        return LabelReading(refused=(error,))
    for event in events:
        try:
            labels.append(_label(event))
        except MalformedEventError as error:
            refused.append(error)
    return LabelReading(tuple(labels), tuple(refused))


def apply_labels(
    database: Database,
    labels: Sequence[LabelRow],
    mark: Callable[[Transaction], None] | None = None,
) -> tuple[int, int]:
    """Store labels; return how many statements now stand: (positive, negated).

    `mark` is called in the transaction.
    """
    newest: dict[tuple[str, str, str, str], LabelRow] = {}
    for label in labels:
        known = newest.get(label.key)
        if known is None or known.age < label.age:
            newest[label.key] = label
    if not newest:
        return 0, 0
    rows = [(*key, *newest[key].age[:2], newest[key].exp) for key in sorted(newest)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[4], columns[5] = columns[5], columns[4]
    with database.transaction() as tx:
        negations = [bool(row[0]) for row in tx.query(_UPSERT, columns)]
        if mark is not None:
            mark(tx)
    return len(negations) - sum(negations), sum(negations)


def _label(event: LabelEvent) -> LabelRow:
    if not is_did(event.src) or len(event.src) > MAX_DID_BYTES:
        raise MalformedEventError("invalid_label", f"src is {event.src[:100]}")
    if not event.uri.startswith(("at://", "did:")):
        raise MalformedEventError("invalid_label", f"uri is {event.uri[:100]}")
    for name, value, limit in (
        ("uri", event.uri, MAX_REFERENCE_BYTES),
        ("val", event.val, MAX_VALUE_BYTES),
        ("cid", event.cid, MAX_CID_BYTES),
    ):
        if "\0" in value or len(value.encode("utf-8", "replace")) > limit:
            raise MalformedEventError(
                "invalid_label", f"{name} is too long or holds a NUL character"
            )
    if not event.val:
        raise MalformedEventError("invalid_label", "val is empty")
    cts = normalize(event.cts)
    exp = None if event.exp is None else normalize(event.exp)
    if cts is None or (event.exp is not None and exp is None):
        raise MalformedEventError("invalid_label", "cts or exp is no datetime")
    return LabelRow(event.src, event.uri, event.cid, event.val, event.neg, cts, exp)
