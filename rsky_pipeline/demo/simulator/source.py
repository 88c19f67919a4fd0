"""What the simulated hosts serve: a world that lives, or a recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rsky_pipeline.demo.simulator.accounts import RepoStatus


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the hosts are, as http URLs without a path."""

    relay: str
    pds: str
    plc: str
    labeler: str


class Source(Protocol):
    """The accounts behind the hosts."""

    @property
    def handles(self) -> Mapping[str, str]:
        """The handles that resolve, with their DIDs."""

    def document(self, did: str, pds: str, labeler: str) -> dict[str, Any] | None:
        """Return a DID document that names these endpoints, or None."""

    def status(self, did: str) -> RepoStatus | None:
        """Return what the host says of a repo; None if it does not have it."""

    def statuses(self) -> Sequence[RepoStatus]:
        """Return all repos, new ones last."""

    def car(self, did: str) -> bytes:
        """Return the whole repo of an account that has one and is active."""
