"""Whole repos: where they come from, whether they are complete and signed, and what they change.

In: a CAR from an account's PDS (`fetch.py`) or from a file (`repo.py`). Out: a verified repo, its
paths in order, and its changes in the order in which they must be made (`changes.py`), for whatever
sink: entries of `firehose_backfill` (`entries.py`), or transactions of a command.

Read `changes.py` first: it says why the order of its steps is what correctness rests on. `fetch.py`
is trio, with bounds for all repos in flight (`blocks.py`) and for each host (`hosts.py`); the
rest blocks for as long as a query or a tree takes, and is called in threads. The backfiller,
`index-repo`, `load` and `db compare` use it; it knows none of them, and nothing of the indexer.
"""
