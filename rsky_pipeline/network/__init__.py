"""The outside world as a client: relays, labelers, PDSes and the DID directory.

Owns sockets, timeouts, size limits and address checks. Must not know about streams or tables."""
