"""systemd: the unit files that this program ships, putting them in place, and asking systemctl.

It has the units of each role, and nothing about the work of a role.
"""
