"""Up to which rev a repo is known to be complete."""

from collections.abc import Sequence

from rsky_pipeline.database.connection import Database

_FLOORS = "SELECT did, rev FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[])"


def floors(database: Database, dids: Sequence[str]) -> dict[str, str]:
    """Return by DID the rev of the newest complete state that is stored; others are left out."""
    return dict(database.query(_FLOORS, (list(dids),)))
