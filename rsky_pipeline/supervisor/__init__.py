"""Processes: the state machine of a child, starting and stopping in order, the control socket.

In: settings and role names (`service.PipelinePlan`), signals, requests on the control socket, the
event pipes of the workers. Out: worker and store processes, the status document, sd_notify, the
exit code of `rsky-pipeline run`.

One process, one trio loop: a task for each child (`child.py`), one that serves the control socket,
one that refreshes the status document every second, one that receives signals. The metrics port is
served by a thread that only reads the document; stores are probed and the schema is applied in
threads. Other processes use `client.py`, which needs no event loop.

Read `machine.py` first: it is pure, and decides everything about one child. `sequence.py` has the
order among children, `service.py` puts all of it together. Nothing here imports a role: a worker
is `python -m rsky_pipeline worker ROLE`, and only its event pipe and health document are known.
"""
