"""Accounts: rows of `actor`, hosting status, handles, and the purge of deleted accounts.

In: account and identity events of a batch, DID documents, answers of PDSes and of handles' hosts.
Out: rows of `actor`, and the removal of everything that a deleted account wrote.

Read `actors` first: the lock on an account, which every batch takes. It and `statuses` run
inside a batch's transaction. `handles` and `deletions` ask the network in tasks of their own
(`checks`), with a connection and thread each; requests for look-ups wait in tables. It must not
know streams.
"""
