"""Replacing the program file of a running pipeline, and undoing it.

Whether the new version runs, accepts the configuration and the schema, and considers the pipeline
healthy is asked of the new file itself, by its own commands. This package has files, order and the
journal. Read `deploy` first; `preflight` checks before anything is touched, `program` has files and
backups, and `journal` makes an interrupted deployment undoable.
"""
