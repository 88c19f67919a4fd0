"""Valkey and PostgreSQL from wheels, for machines that have neither.

In: settings. Out: a `StoreProgram` (`program.py`) for each store: how it is started, stopped and
probed, its directories made and its data initialised. The supervisor runs them;
`guard.py` is a small process that stops a store whose supervisor was killed.

Read first `postgres.py` (with `accounts.py`, which lets it run for root) or `valkey.py`;
`locations.py` says where everything is. The wheels' own Python code is never imported.

All calls block, without tasks or threads; the supervisor makes them in threads. It must neither
use the stores nor supervise them.
"""
