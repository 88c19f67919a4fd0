"""app.bsky.graph.referencelistoptout: a row of `reference_list_opt_out`.

Its author is not shown on somebody's reference list. The AppView has the table since 0.0.278;
before, one of ours stands in for it (`database.schema.official`).
"""

from rsky_pipeline.atproto.syntax import is_did, is_rkey
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import Record, created_at, parts, uri
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, Rows


def _read(_put: Put, record: Record) -> Rows:
    subject, created = uri(record, "subject"), created_at(record)
    if not _names_list(subject):
        return Rows()  # the AppView never asks for it; officially no row either
    return Rows(main=(subject, created))


def _names_list(subject: str) -> bool:
    """Tell whether a uri is in the form in which the AppView asks for lists."""
    found = parts(subject)
    return (
        found is not None
        and found.collection == "app.bsky.graph.list"
        and is_did(found.authority)
        and found.authority.startswith(("did:plc:", "did:web:"))
        and is_rkey(found.rkey)
    )


COLLECTION = Collection(
    nsid="app.bsky.graph.referencelistoptout",
    read=_read,
    table=CollectionTable(
        "reference_list_opt_out",
        columns={"subjectUri": "varchar", "createdAt": "varchar"},
        unique=("creator", "subjectUri"),
    ),
)
