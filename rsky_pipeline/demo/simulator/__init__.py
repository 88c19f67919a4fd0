"""A relay, PDS, PLC directory and labeler on loopback, for the demo, the tests and benchmarks.

Makes real repos: real MSTs, signed commits, Sync 1.1 fields, deterministic by seed."""
