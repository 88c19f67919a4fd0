"""Bulk load: repos from CAR files straight into PostgreSQL, without a stream in between.

Each file is verified as a fetched repo is, and written by the indexer's own rules, so that the
rows are those that the streams would have made.

In: a directory of CAR files, DID documents. Out: rows, and the outcome of each file in
`rsky_pipeline.load_file`. `run.py` finds files and adds up; `initial.py` has counts and indexes
follow the rows where the tables are empty; `pool.py` hands tasks to processes, a thread for each;
`worker.py` is such a process, and is read first: a trio loop in which queries block, since nothing
else runs there. Nothing here uses a stream.
"""
