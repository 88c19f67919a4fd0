"""Accounts: rows of `actor`, hosting status, handles, and the purge of deleted accounts.

`actors` and `status` work inside a batch's transaction. `handles` and `deletions` ask the network
in the background; requests for look-ups wait in tables.
"""
