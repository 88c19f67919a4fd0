"""A table of ours that stands in for one that the AppView makes only in a later release.

A record type whose official table is not there yet has one of the same name and columns in our own
schema, which is behind the AppView's in the search_path: statements name neither schema. Once the
official table appears, new statements find that one. Then the rows are moved and the stand-in is
dropped, which has statements that were prepared before look for the name again.
"""

from rsky_pipeline.database.connection import Database, Transaction, quote_schema

STAND_IN = "reference_list_opt_out"  # official since 0.0.278
_IS_REPLACED = """
SELECT to_regclass(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL
"""
# Between the appearance of the table and the move, records are written into it and deleted from it.
# So records that are gone are left behind, and of two that say the same that one stands that is
# there. The stand-in is locked first: a transaction may have used it, and then use the other one.
_MOVE = f"""
LOCK TABLE rsky_pipeline.{STAND_IN} IN ACCESS EXCLUSIVE MODE;
LOCK TABLE {{schema}}.{STAND_IN} IN SHARE ROW EXCLUSIVE MODE;
DELETE FROM rsky_pipeline.{STAND_IN} s
WHERE NOT EXISTS (SELECT FROM {{schema}}.record r WHERE r.uri = s.uri AND r.cid = s.cid);
INSERT INTO {{schema}}.{STAND_IN} (uri, cid, creator, "subjectUri", "createdAt", "indexedAt")
SELECT uri, cid, creator, "subjectUri", "createdAt", "indexedAt" FROM rsky_pipeline.{STAND_IN}
ORDER BY uri ON CONFLICT DO NOTHING;
INSERT INTO {{schema}}.duplicate_record (uri, cid, "duplicateOf", "indexedAt")
SELECT s.uri, s.cid, t.uri, s."indexedAt"
FROM rsky_pipeline.{STAND_IN} s JOIN {{schema}}.{STAND_IN} t USING (creator, "subjectUri")
WHERE t.uri <> s.uri ON CONFLICT DO NOTHING;
DROP TABLE rsky_pipeline.{STAND_IN}
"""


def retire(tx: Transaction, schema: str) -> bool:
    """Move the rows into the official table if it is there; return whether it was done."""
    quoted = quote_schema(schema)
    names = (f"rsky_pipeline.{STAND_IN}", f"{quoted}.{STAND_IN}")
    if tx.query(_IS_REPLACED, names) != [(True,)]:
        return False
    tx.execute(_MOVE.format(schema=quoted))
    return True


def retire_stand_in(database: Database) -> bool:
    """Do it in a transaction of its own; cheap where there is nothing to do."""
    with database.transaction() as tx:
        return retire(tx, database.schema)
