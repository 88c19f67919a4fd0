"""From entries to committed rows; `apply` is the algorithm, the other modules are its steps.

In: deliveries of the streams, and the collections' declarations. Out: rows, counts, notifications
and rejections in one transaction for each batch, and a `BatchOutcome` for the role to acknowledge.

Read `apply` first, then `plan`, which decides without I/O. Everything else blocks on one connection
and has no tasks; the role calls it in a thread. It must not know streams beyond a delivery, the
network, or the content of a collection's records.
"""
