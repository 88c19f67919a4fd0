"""Commands on the queue of repos: add, show progress, retry, cancel.

In: accounts that an operator names or a host lists. Out: jobs in `repo_backfill` and its siblings,
rows of `rsky_pipeline.backfill_repo`. Blocking, for a command; only `adding.add_listed` runs a trio
loop. Read `adding.py` first. Nothing here fetches a repo: that is the backfiller's.
"""
