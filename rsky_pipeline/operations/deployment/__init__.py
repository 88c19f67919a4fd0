"""Replacing the program file of a running pipeline, and undoing it.

Everything that only the new version can know is asked of the new file itself, by its own commands:
whether it runs, accepts the configuration and the schema, and whether the pipeline is well. This
package knows files, order and the journal.
"""
