"""One module a kind of record: table, columns, uniqueness, counts, notifications."""
