"""The pipeline on a network of its own, compared row for row (`rsky-pipeline demo`).

In: a seed, a rate, a duration. Out: a live view, and the differences between the database and the
rows that the simulated repos imply. Read `demonstration` first: it starts a process for the network
(`simulator`) and one for the pipeline, reads their figures (`figures`), stops both and compares.
It blocks in one thread. Nothing of the pipeline imports it.
"""
