"""Validation of records: the lexicons of the indexed collections, and checking against them.

In: a record as JSON values. Out: nothing, or an InvalidRecordError with its reason. Read `schemas`
first: how a schema is written, and those of the collections; `check` compiles each into a function,
strict or lenient. Pure, without tasks or threads. It must not know tables or accounts.
"""
