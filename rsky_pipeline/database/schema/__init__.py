"""The tables: those of the official AppView data plane, and our own beside them.

`initialise` makes or upgrades them, `check` lists the differences from the expected schema."""

from rsky_pipeline.database.schema.compare import Difference, check
from rsky_pipeline.database.schema.migrate import initialise, pending

__all__ = ["Difference", "check", "initialise", "pending"]
