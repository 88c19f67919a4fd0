"""Which collections the setting `collections` selects: exact NSIDs, and prefixes with their dot."""

from collections.abc import Sequence


def path_prefixes(collections: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of repo paths (`collection/rkey`) of selected collections.

    For `str.startswith`, which takes a tuple: one call a path on the hot path.
    """
    return tuple(name if name.endswith(".") else f"{name}/" for name in collections)


def is_selected(nsid: str, collections: Sequence[str]) -> bool:
    """Return whether a collection is selected."""
    return f"{nsid}/".startswith(path_prefixes(collections))
