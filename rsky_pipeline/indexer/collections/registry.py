"""Finds the collections: every module of this package that declares `COLLECTION`."""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache

from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.indexer import collections
from rsky_pipeline.indexer.collections.declaration import Collection, record_only
from rsky_pipeline.indexer.lexicon.check import checker

# Collections without a table: the AppView reads them from `record`.
RECORD_ONLY = tuple(
    Collection(nsid, record_only)
    for nsid in (
        "app.bsky.actor.status",
        "app.bsky.notification.declaration",
        "chat.bsky.actor.declaration",
        "com.germnetwork.declaration",
    )
)


@cache
def load(validation: Validation = "lenient") -> dict[str, Collection]:
    """Return every collection by its NSID, ordered so that results do not depend on file names.

    `validation` decides which records their `check` lets through.
    """
    declared = list(RECORD_ONLY)
    for item in pkgutil.iter_modules(collections.__path__):
        module = importlib.import_module(f"{collections.__name__}.{item.name}")
        one = getattr(module, "COLLECTION", None)
        declared += getattr(module, "COLLECTIONS", ()) if one is None else (one,)
    found: dict[str, Collection] = {}
    for collection in declared:
        if collection.nsid in found:
            raise ValueError(f"{collection.nsid} is declared twice")
        check = checker(collection.nsid, validation)
        found[collection.nsid] = replace(collection, check=check)
    return dict(sorted(found.items()))
