"""The tables: those of the official AppView data plane, and our own beside them.

`initialise` makes or upgrades them, `check` compares what is there with what should be."""

from rsky_pipeline.database.schema.compare import Difference, check
from rsky_pipeline.database.schema.migrate import initialise, pending

__all__ = ["Difference", "check", "initialise", "pending"]
