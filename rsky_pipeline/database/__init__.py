"""PostgreSQL: the only importer of `psycopg`.

In: SQL and rows of the roles. Out: rows, and errors sorted by what a caller has to do
(`errors.py`). It has no tasks and no threads: every call blocks on one `Database` (one connection
with the session settings that all SQL relies on, `connection.py`); long-lived callers keep theirs
in a `runtime.link.Link`.

Read first `connection.py`, then `isolation.py` (how a batch is applied although PostgreSQL refuses
one of its items). `bulk.py` and `texts.py` bring many rows across in one statement; `schema/` makes
and compares the tables, `server.py` judges the server.

It must not know what a record means; that is the indexer's.
"""
