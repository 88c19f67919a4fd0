"""What is indexed: the setting `collections`, and what operators leave out at run time.

`Selection` is the one place that decides about accounts, hosts and collections. It is a value: the
ingester has it from Redis (`streams.selection`), the others from PostgreSQL (`database.selection`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.endpoints import is_dns_name, parse_endpoint

BlockKind = Literal["account", "host", "collection"]
BLOCK_KINDS: tuple[BlockKind, ...] = ("account", "host", "collection")
_MAX_HOSTS = 20_000  # names of hosts that are kept parsed


def path_prefixes(collections: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of repo paths (`collection/rkey`) of selected collections.

    For `str.startswith`, which takes a tuple: one call a path on the hot path.
    """
    return tuple(name if name.endswith(".") else f"{name}/" for name in collections)


def is_selected(nsid: str, collections: Sequence[str]) -> bool:
    """Return whether a collection is selected."""
    return f"{nsid}/".startswith(path_prefixes(collections))


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything but some accounts, hosts and collections.

    `hosts` are names, with a port where only that port is meant, and `.example.com` for all names
    below one. `collections` are NSIDs, and prefixes with their dot. `queued` are accounts of
    blocked hosts, each with the time (in seconds since 1970) up to which entries about it may have
    been queued by workers that did not know of the block yet; later ones come from its next host.
    `version` is another number after each change.
    """

    version: int = 0
    accounts: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    collections: tuple[str, ...] = ()
    queued: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.accounts or self.hosts or self.collections)

    @property
    def count(self) -> int:
        """The number of blocks."""
        return len(self.accounts) + len(self.hosts) + len(self.collections)

    def left_out(
        self, did: str = "", *, host: str = "", collection: str = "", queued_at: float | None = None
    ) -> BlockKind | None:
        """Return the kind of the block that an event falls under; None if it is kept.

        `host` is the account's host as `host_name` returns it, empty where it is not known.
        """
        if did in self.accounts:
            return "account"
        if host and self.hosts and self._has_host(host):
            return "host"
        if queued_at is not None and queued_at < self.queued.get(did, 0.0):
            return "host"
        if collection and self.collections and is_selected(collection, self.collections):
            return "collection"
        return None

    def keeps(self, did: str = "", host: str = "", collection: str = "") -> bool:
        """Return whether an event is indexed."""
        return self.left_out(did, host=host, collection=collection) is None

    def _has_host(self, host: str) -> bool:
        name = host
        if not host.endswith("]") and ":" in host:
            name = host.rpartition(":")[0]
        if host in self.hosts or name in self.hosts:
            return True
        while dot := name.find(".") + 1:
            if name[dot - 1 :] in self.hosts:
                return True
            name = name[dot:]
        return False


@lru_cache(maxsize=_MAX_HOSTS)
def host_name(pds: str | None) -> str:
    """Return the name (and a port that is not the default) of a PDS; empty for none."""
    try:
        return "" if pds is None else parse_endpoint(pds).key
    except ValueError:
        return ""


def read_host(text: str) -> str:
    """Return a host that somebody wrote as `Selection.hosts` has it. Raises ValueError."""
    text = text.strip()
    if text.startswith("*."):
        name = text[2:].lower().removesuffix(".")
        if not is_dns_name(name) or "." not in name:
            raise ValueError(f"{text[:100]!r}: allowed is *.example.com, with two names at least")
        return f".{name}"
    return parse_endpoint(text).key


def lifting(kind: BlockKind, subject: str) -> str:
    """Return the command that lifts a block, for a message."""
    if kind == "account":
        return advised("block", "remove", subject)
    shown = shown_block(kind, subject)
    if kind == "host":
        return advised("block", "remove", "--host", shown)
    return advised("block", "remove", "--collection", shown)


def shown_block(kind: BlockKind, subject: str) -> str:
    """Return the subject of a block as people write it."""
    if kind == "host":
        return shown_host(subject)
    return f"{subject}*" if kind == "collection" and subject.endswith(".") else subject


def shown_host(host: str) -> str:
    """Return a host of `Selection.hosts` as people write it."""
    return f"*{host}" if host.startswith(".") else host
