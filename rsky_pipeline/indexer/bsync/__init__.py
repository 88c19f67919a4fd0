"""Mutes, bookmarks, drafts and settings, which users make in the AppView and no repo holds.

In: entries of `bsync_live`. Out: the rows that the official AppView makes of these operations,
whatever the order and the batches in which they come. Read `apply` first; `operations` reads an
entry, `created` has the rows that a CREATE makes. All calls block, in the thread that applies.
"""
