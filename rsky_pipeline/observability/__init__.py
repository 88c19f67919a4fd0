"""Metrics and the port that serves them.

In: counts and figures of the roles. Out: `/metrics` and `/healthz` of each process, the build that
runs, and all declared metrics as data (`catalogue.py`, which is read first: the reference, the
dashboards and the checks for missing metrics are made from it). One file declares the metrics of
one kind of process, with `declaring.py`: every series exists at 0 from the first scrape on.

`server.py` serves from a thread of its own. Nothing here judges a figure (`rsky_pipeline.health`
does), and nothing uses a role, a store or the network.
"""
