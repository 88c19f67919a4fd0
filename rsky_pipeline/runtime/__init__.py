"""The part of a worker process that is the same in every role: its life cycle, health and log.

In: a role's `run` function, signals, the supervisor's pipes. Out: the exit code, events and health
documents for the supervisor, log lines.

`worker.run_worker` is what `python -m rsky_pipeline worker ROLE` runs: it gives a role a
`WorkerContext`, turns signals into `stopping` and `escalated`, reports readiness and health to the
supervisor (`channel`) and systemd (`notify`), and makes the exit code. Its tasks: the role,
signals, the supervisor's liveness pipe, a heartbeat each second, the sender of events; metrics and
`/healthz` are served from a thread, so that they answer while the loop is busy.

Roles use `link` (a connection to a store), `boundary` (exceptions in the work on one untrusted
item), `threads` (blocking clients), `backoff`, `logging`. Read `worker` and `context` first. It
must not know a role, a stream or a table.
"""
