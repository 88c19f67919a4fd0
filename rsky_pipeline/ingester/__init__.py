"""Relays and labelers to streams: live events, repo enumeration, labels, and their cursors.

Keeps the promise that a cursor is stored in the same transaction as the data that it covers."""
