"""PostgreSQL: the only importer of `psycopg`.

Owns connections, the error classes callers act on, the schema and its migrations, and bulk writes.
Must not know what a record means; that is the indexer's."""
