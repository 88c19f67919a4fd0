"""Finds the collections: every module of this package that declares `COLLECTION`."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from rsky_pipeline.atproto.syntax import is_nsid
from rsky_pipeline.configuration.selection import is_selected, path_prefixes
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


# Prefixes of the AppView's own records: below them only those kinds are wanted that it stores.
_OFFICIAL = frozenset({"app.bsky.", "chat.bsky."})


class SelectedCollections(dict[str, Collection]):
    """The collections that the setting `collections` selects.

    As a dictionary it has those that this package declares. Any other NSID is in it as well if the
    setting names it, or a prefix of it other than `app.bsky.` and `chat.bsky.`: its records go into
    `record` alone. They are not kept here, since strangers can invent any number of NSIDs.
    """

    def __init__(
        self, selection: Sequence[str], validation: Validation = "lenient",
        left_out: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`selection` has NSIDs, and prefixes with their dot; `left_out` those that are blocked."""
        declared = load(validation).items()
        super().__init__(
            (nsid, one)
            for nsid, one in declared
            if is_selected(nsid, selection) and not is_selected(nsid, left_out)
        )
        self._others = path_prefixes([name for name in selection if name not in _OFFICIAL])
        self._left_out = path_prefixes(left_out)

    def __contains__(self, nsid: object) -> bool:
        if super().__contains__(nsid):
            return True
        if not isinstance(nsid, str) or f"{nsid}/".startswith(self._left_out):
            return False
        return f"{nsid}/".startswith(self._others) and is_nsid(nsid)

    def __missing__(self, nsid: str) -> Collection:
        if nsid not in self:
            raise KeyError(nsid)
        return Collection(nsid, record_only)

    def get(self, nsid: str, default: Any = None) -> Any:
        """Return a collection, also one that is not declared."""
        try:
            return self[nsid]
        except KeyError:
            return default
