"""DID documents: where an account is hosted and which key signs its repo.

https://atproto.com/specs/did#did-documents
"""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.syntax import is_handle


@dataclass(frozen=True, slots=True)
class DidDocument:
    """What the pipeline needs of a DID document; a part that is missing or malformed is None."""

    did: str
    handle: str | None  # claimed by the account, not verified
    pds: str | None  # scheme, host and optional port
    signing_key: PublicKey | None


def parse_did_document(document: object, did: str) -> DidDocument:
    """Read the document of a DID. Raises InvalidData if it is not this DID's document."""
    if not isinstance(document, dict) or document.get("id") != did:
        raise InvalidData("did_document", f"not the document of {did[:100]}")
    return DidDocument(did, _handle(document), _pds(document), _signing_key(document, did))


def _entries(document: dict[str, object], name: str) -> Iterator[dict[str, object]]:
    entries = document.get(name)
    if isinstance(entries, list):
        yield from (entry for entry in entries if isinstance(entry, dict))


def _handle(document: dict[str, object]) -> str | None:
    names = document.get("alsoKnownAs")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://") and is_handle(name[5:]):
            return name[5:].lower()
    return None


def _pds(document: dict[str, object]) -> str | None:
    for service in _entries(document, "service"):
        identifier, endpoint = service.get("id"), service.get("serviceEndpoint")
        if not isinstance(identifier, str) or not identifier.endswith("#atproto_pds"):
            continue
        if service.get("type") != "AtprotoPersonalDataServer" or not isinstance(endpoint, str):
            continue
        try:
            parts = urlsplit(endpoint)
            plain = parts.path in {"", "/"} and not parts.query and not parts.username
        except ValueError:
            return None
        if parts.scheme in {"http", "https"} and parts.hostname and plain:
            return f"{parts.scheme}://{parts.netloc}"
        return None
    return None


def _signing_key(document: dict[str, object], did: str) -> PublicKey | None:
    for method in _entries(document, "verificationMethod"):
        identifier, text = method.get("id"), method.get("publicKeyMultibase")
        if identifier not in {"#atproto", f"{did}#atproto"} or method.get("controller") != did:
            continue
        kind = method.get("type")
        if not isinstance(text, str) or not isinstance(kind, str):
            return None
        try:
            return PublicKey.parse(text, legacy_type=kind)
        except InvalidData:
            return None
    return None
