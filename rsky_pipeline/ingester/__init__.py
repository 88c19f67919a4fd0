"""Relays and labelers to streams: live events, lists of repos, labels, and their cursors.

In: `subscribeRepos` of each relay and `subscribeLabels` of each labeler (WebSocket), `listRepos` of
each relay (HTTP), DID documents. Out: entries of `firehose_live`, `label_live`, `repo_backfill`,
`repo_backfill_high`, `rsky_pipeline:resync_later`, `rsky_pipeline:gaps` and the raw dead letters,
with cursors and states of repos in the same step.

Read `pipeline` first: it has the algorithm. `follower` keeps a connection open and feeds it,
`writer` stores its entries, `commits` and `labels` have the steps, `listing` lists repos and
repairs gaps, `role` puts the tasks together, `report` publishes their health.

Tasks, all in one trio loop: a follower for each host (with a task that reads the socket, one that
pings, and one for each lookup of a key), one writer for all relays and one for each labeler, one
task for each listing, and one each for gap repair, waiting resyncs, health and stream figures.
Threads: one for each connection to a store, and one for each relay that checks signatures.

It must not know tables of the AppView (gap repair reads two of them by SQL of its own), other
roles, or the consumers of its streams. A cursor is stored in the same step as the data that it
covers.
"""
