"""Bulk load: repos from CAR files straight into PostgreSQL, without a stream in between.

Each file is verified as a fetched repo is, and written by the indexer's own rules, so that the
rows are those that the streams would have made.
"""
