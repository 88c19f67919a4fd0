"""The kinds of records: one module each, with its table, uniqueness, counts and notifications.

A new kind is a new module here that declares `COLLECTION` (see `declaration`); `registry` finds it.
"""
