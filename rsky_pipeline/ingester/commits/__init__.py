"""Commits of relays: conversion, validation, signatures, states, resyncs, copies of other relays.

In: decoded messages of a relay, keys from the DID directory, states of repos from Redis. Out:
stream entries, the new state of each repo, and the reason of a resync.

Read `rsky_pipeline.ingester.pipeline` first: it calls these modules in their order. `validation`,
`relays` and most of `convert` are pure. It starts one task, which appends the waiting resyncs
(`resync`); the lookups of keys (`signatures`) run in tasks of the pipeline, and `states` reads in
the thread of its link. It must not know sockets, cursors or batches.
"""
