"""One module a record collection: its table, columns, uniqueness, counts and notifications."""
