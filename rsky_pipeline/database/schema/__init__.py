"""The tables: those of the official AppView data plane, and our own beside them.

In: a database. Out: its tables, made or upgraded (`initialise`), or the list of its differences
from the expected schema (`check`). Read `migrate` first; a step is a file `NNNN_name.sql`,
`official` has the later migrations of the AppView, and `expected.json` is the result of all of
them. All calls block; there are no tasks and no threads. It must not know what a row means.
"""

from rsky_pipeline.database.schema.compare import (
    Difference,
    appview_release,
    blamed_on_schema,
    check,
    differing_parts,
)
from rsky_pipeline.database.schema.migrate import initialise, pending
from rsky_pipeline.database.schema.official import RELEASES, name_releases

__all__ = [
    "RELEASES",
    "Difference",
    "appview_release",
    "blamed_on_schema",
    "check",
    "differing_parts",
    "initialise",
    "name_releases",
    "pending",
]
