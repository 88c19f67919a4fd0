"""The schema: the official AppView's tables, and the pipeline's own in `rsky_pipeline`."""

from rsky_pipeline.database.schema.catalog import Difference
from rsky_pipeline.database.schema.maintain import check, initialise

__all__ = ["Difference", "check", "initialise"]
