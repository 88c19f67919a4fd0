"""Stopping and starting roles in the order of the data flow: `stop`, `start`, `restart`, `deploy`.

In: settings, roles, time limits. Out: a `Movement`: steps, with the findings of their verification.
The order is computed from the role graph (`configuration.topology`). `flow.py`, which is read
first, walks it; a `Manager` (`movement.py`) moves one role, either under our own supervisors
(`supervised.py`, by their control sockets) or as systemd units (`units.py`); `verified.py` looks in
Redis whether consumers are drained and cursors cover the written events. All of it is blocking. It
moves processes and does not know that `deploy` swaps the program between.
"""
