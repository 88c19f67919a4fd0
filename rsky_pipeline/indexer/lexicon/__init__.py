"""Validation of records: the lexicons of the indexed collections, and checking against them.

`shapes` is how a schema is written down, `schemas` are those of the collections, `check` decides.
"""
