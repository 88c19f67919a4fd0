"""What every worker process shares: signals, readiness, liveness, threads, logging, clock."""
