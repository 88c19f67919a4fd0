"""Checking a running pipeline from outside: `verify`, `monitor`, and `deploy --watch`.

In: settings, the metrics ports and health documents of the workers, Redis, PostgreSQL, the relays.
Out: a `VerificationReport`, verdicts by the rules of `rsky_pipeline.health`. `run.py` is read
first: two looks, a window apart, become a report. `checks.py` judges figures, `outside.py` asks the
database and the relays, `probe.py` tests the rev gate. All of it is blocking, for commands only. It
must not set a threshold (`rsky_pipeline.health` has them) nor repair anything.
"""
