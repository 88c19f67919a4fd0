"""Replacing the program file of a running pipeline, and undoing it.

In: a program file, settings. Out: the swapped file with the pipeline running on it, or the old
state, and a journal of each step. Whether the new version runs, accepts the configuration and the
schema, and considers the pipeline healthy is asked of the new file itself, by its own commands.

Read `deploy` first; `preflight` checks before anything is changed, `program` has files and backups,
and `journal` makes an interrupted deployment undoable. All of it blocks, for commands only. It must
not know a role's work; `operations.ordered` stops and starts roles.
"""
