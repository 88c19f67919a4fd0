"""What every worker process shares, whatever its role: its life, its health, its log.

`worker.run_worker` is what `python -m rsky_pipeline worker ROLE` runs: it gives a role a
`WorkerContext`, turns signals into `stopping` and `escalated`, reports readiness and health to the
supervisor (`channel`) and systemd (`notify`), and makes the exit code. Its tasks: the role,
signals, the supervisor's liveness pipe, a heartbeat each second, the sender of events; metrics and
`/healthz` are served from a thread, so that they answer while the loop is busy.

Roles use `boundary` (exceptions over one stranger's item), `threads` (blocking clients), `backoff`,
`logging`. Read `worker` and `context` first. It knows no role, no stream and no table.
"""
