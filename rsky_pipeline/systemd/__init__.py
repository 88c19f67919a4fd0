"""systemd: the unit files that this program ships, putting them in place, and asking systemctl.

It knows which units a role has and nothing about what a role does.
"""
