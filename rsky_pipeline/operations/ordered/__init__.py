"""Stopping and starting the roles in the order of the data flow, each step verified in Redis.

The same flow drives our own supervisors (control sockets) and systemd units: a `Manager` is one of
the two ways. It knows how to move processes and nothing about deploying another version.
"""
