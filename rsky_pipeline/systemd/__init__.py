"""systemd: the unit files that this program ships, their installation, and calls of systemctl.

In: the shipped files (`units/`) and the answers of systemctl. Out: installed files, and the state
of each `Unit`. Read `files` first, then `systemctl`. All calls block and wait for a process; there
are no tasks and no threads. It has the units of each role, and must not know a role's work.
"""
