"""The record types: one module each, with its table, natural key, counts and notifications.

In: the JSON of a record (`Record`) and the rows that a batch wrote (`Changes`). Out: rows and
notifications. A new type is a new module here that declares `COLLECTION`; `registry` finds it, and
CONTRIBUTING.md lists what else it needs.

Read `declaration` first, then `like` as an example. Reading a record is pure; `finish` functions
run SQL in the batch's transaction, in its thread. It must not know streams, nor decide what is
stale: `core.plan` has done that before.
"""
