"""A relay, PDS, PLC directory and labeler on loopback, for the demo, the tests and benchmarks.

Makes real repos: real MSTs, signed commits, Sync 1.1 fields, deterministic by seed. In: a seed, a
rate, faults; or a recording. Out: frames and XRPC answers, and the rows that a correct database
holds. `world` makes the events (`accounts`, `repo`, `records`, `mix`, `labels`), `network` serves
it (`hosts`, `subscription`, `http`, `faults`), `truth` derives the rows from `state`, and `compare`
holds a database against them. `control` asks a simulation in another process, `fleet` is many PDSes
that are slow or broken. Read `world` first. The hosts run in one trio loop without threads.
It must not use the pipeline's code to work out rows, which would repeat its defects.
"""
