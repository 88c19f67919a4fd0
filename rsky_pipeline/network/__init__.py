"""Clients of the network: relays, labelers, PDSes, the DID directory, hosts of handles.

In: endpoints that the operator configured, and untrusted host names from DID documents. Out:
frames, pages of repos, CAR bytes and documents, or an exception of a fixed list of reasons.
Everything has bounds: time, bytes, redirects, addresses.

- `subscription`: one WebSocket stream, with a reader and a heartbeat task for each connection;
  `frame_socket` is its socket.
- `http`: the HTTP client of all roles, over the connections of `pool`.
- `connect`: from a host to a TCP connection, for both; which addresses may be connected to.
- `listing`: every list of repos; `repositories`: one repo; `directory`: DID documents, with a
  cache; `handles`: from a handle to its DID.

Read `subscription` and `http` first. All of it runs in the event loop; there are no threads. It
knows nothing of streams, tables or roles, and decides nothing about what an answer means for an
account.
"""
