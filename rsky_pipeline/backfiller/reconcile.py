"""Which stored records a signed tree proves to be gone; no I/O."""

from collections.abc import Iterable, Iterator


def absent(wanted: Iterable[str], held: Iterator[str]) -> Iterator[str]:
    """Yield the paths of `wanted` that are not among `held`; both ascend by their bytes.

    Paths are ASCII, so that the order of Python's texts is that of their bytes; another path is in
    no tree.
    """
    current = next(held, None)
    for path in wanted:
        while current is not None and current < path:
            current = next(held, None)
        if current != path:
            yield path
