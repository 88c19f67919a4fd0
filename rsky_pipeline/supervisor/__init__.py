"""Processes only: the state machine of a child, policies, spawning, control socket, snapshot.

Knows roles by name and imports none of them; it starts `python -m rsky_pipeline worker ROLE`."""
