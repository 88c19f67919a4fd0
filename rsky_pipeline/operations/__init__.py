"""Operators' work on a running pipeline, as libraries that the commands call.

In: settings, connections, a callback for progress. Out: values with a `document()` for JSON;
nothing here prints. Blocking calls in the caller's thread; the modules that ask hosts run a trio
loop of their own. By subject: `trace` and `diagnosis` (where is a record), `stream_figures`
(the streams), `cleaning`, `groups` and `release` (looking into them and changing them),
`dead_letters`, `cursors`, `gaps`, `recount`, `backfill`, `index_repo`, `compare_repo` and `load`
(repos), `verification` and `monitoring` (health), `ordered` and `deployment` (stopping, starting,
replacing the program). They must not know the command line.
"""
