"""Whether the pipeline is well: one table of rules, evaluated by workers, `verify` and Prometheus.

In: samples of the streams, of Redis and of the workers' metrics. Out: a `RuleVerdict` for each rule
and subject (pass, warn, fail or skip); the findings of a worker as metrics and log lines; the
alerts of docs/monitoring.

Read `rules.py` first: it has every rule with its thresholds, its remedy and its alerts, and it is
the only place for thresholds. `conditions.py` computes the values that the rules judge from samples
(`samples.py`), over five minutes in a worker, over one window in `verify`. `self_check.py` is the
worker's part: called in the store thread of the task that watches the streams, it has no task of
its own. `pairing.py` says whether Redis and the database are of one installation.

`rules.py` imports nothing but the configuration, so that every package may name a threshold. The
others stand above `streams` and `database`, and know no role, no supervisor and no command.
"""
