"""The AT Protocol without I/O: frames, DAG-CBOR, CIDs, CARs, MSTs, commits, keys, syntax.

Every function takes bytes or values and returns values; nothing here opens a socket, reads a clock
or knows about Redis or PostgreSQL."""
