"""Say what `make test-host` covers and what it lacks here, and make the Debian that it boots."""

import sys

from tests.host import root

COVERS = """\
make test-host runs the operator's pages to the letter on a Debian 12 with systemd, PostgreSQL 15
and Redis 7, both over TLS and with an account of few rights, and with the simulated network:
  installation from the program file, units, status, verify, logs
  a unit's restart, reboot, further workers, `stop --ordered`, the order of systemd's own stop
  deployment, a deployment that fails, rollback
  backup of both stores, each lost and restored
  the disk of the database is full; an SQL error that repeats
It takes about ten minutes on two cores, and two to four more where the Debian has to be made."""


def main() -> int:
    """Return the exit code."""
    print(COVERS, flush=True)
    if missing := root.missing():
        print("\nIt cannot run here:", *missing, sep="\n  ")
        return 1
    root.ready(lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
