"""Redis streams: the only importer of `redis`.

Owns names, wire forms, appending with a cursor, consumer groups, dead letters, trimming and lag."""
