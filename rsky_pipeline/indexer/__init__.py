"""The indexer role: events of the streams become rows of the AppView's tables.

`plan` decides, without I/O, what each event does; `apply` does it in one transaction a batch;
`collections` says, one file a kind of record, which rows a record becomes. The role must not know
where events come from, nor how a relay or a repo looks.
"""
