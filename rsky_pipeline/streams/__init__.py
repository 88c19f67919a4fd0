"""Redis streams between the roles: the only importer of `redis`.

In: entries to append, with the cursors and states that go with them; calls of consumers. Out:
deliveries, dead letters, and reports about streams. It has no tasks and no threads: every call
blocks, on the `Store` (one connection, `connection.py`) that it is given; long-lived callers keep
theirs in a `runtime.link.Link`. Steps that must be one step of the server are the Lua scripts.

Read first `append.py` with `append.lua` (the writing side: entries, states and cursor all or
nothing), then `consumer.py` (the reading side). `event.py` and `repo_job.py` are the wire forms of
entries, `names.py` all names and keys, as the original services had them.

It must not know what a record means, who a host is, or PostgreSQL.
"""
