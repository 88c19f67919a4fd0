"""Accounts: rows of `actor`, hosting status, handles, and the purge of deleted accounts.

`actors` and `status` work inside a batch's transaction. `handles` and `deletions` ask the network
in the background; what is to be looked up waits in tables.
"""
