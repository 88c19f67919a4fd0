"""Accounts of a simulated network: names, keys, documents, hosting status, repo."""

from base64 import b32encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.demo.simulator.repo import SimulatedRepo

DOMAIN = "sim.example.com"
P256_EVERY = 4  # every fourth account signs with P-256


@dataclass(slots=True)
class SimulatedAccount:
    """One account. `historic` ones were there before the stream began and stay active."""

    number: int
    did: str
    handle: str
    key: PrivateKey
    repo: SimulatedRepo
    historic: bool = False
    born: bool = False
    active: bool = True
    status: str | None = None
    handle_resolves: bool = True
    # The newest commit that changed an indexed record, and those after it, as (CID, rev).
    standing: list[tuple[str, str]] = field(default_factory=list)
    indexed: bool = False  # whether such a commit exists; else `standing` has all

    @property
    def deleted(self) -> bool:
        """Whether the account is gone for good."""
        return self.status == "deleted"

    def uri(self, path: str) -> str:
        """Return the uri of one of its records."""
        return f"at://{self.did}/{path}"

    def note_commit(self, indexed: bool) -> None:
        """Remember the newest commit, which changed indexed records or did not."""
        if indexed:
            self.standing.clear()
            self.indexed = True
        self.standing.append((str(self.repo.head), self.repo.rev))


@dataclass(frozen=True, slots=True)
class RepoStatus:
    """A repo as listRepos and getRepoStatus describe it; an empty rev: nothing was written."""

    did: str
    head: str
    rev: str
    active: bool
    status: str | None = None


def make_account(seed: int, number: int) -> SimulatedAccount:
    """Make an account; everything follows from the seed and its number."""
    key = PrivateKey.from_seed(
        "k256" if number % P256_EVERY else "p256", f"key {seed} {number}".encode()
    )
    did = plc_did(f"did {seed} {number}")
    repo = SimulatedRepo(did, key)
    resolves = number % 50 != 49
    return SimulatedAccount(
        number, did, f"user{number}.{DOMAIN}", key, repo, handle_resolves=resolves
    )


def plc_did(text: str) -> str:
    """Return a did:plc that follows from a text."""
    digits = b32encode(sha256(text.encode()).digest())[:24]
    return f"did:plc:{digits.decode().lower()}"


def did_document(
    did: str, handle: str, keys: dict[str, str], services: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return a DID document; `keys` and `services` are given by their fragment."""
    return {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
        ],
        "id": did,
        "alsoKnownAs": [f"at://{handle}"],
        "verificationMethod": [
            {
                "id": f"{did}#{fragment}",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": multibase,
            }
            for fragment, multibase in keys.items()
        ],
        "service": [
            {"id": f"#{fragment}", "type": kind, "serviceEndpoint": endpoint}
            for fragment, (kind, endpoint) in services.items()
        ],
    }
