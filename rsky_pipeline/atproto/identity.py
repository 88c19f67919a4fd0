"""DID documents: where an account is hosted and which key signs its repo.

https://atproto.com/specs/did#did-documents
"""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.syntax import is_handle

_MAX_ENDPOINT = 300  # characters; a name has 253 at most


@dataclass(frozen=True, slots=True)
class DidDocument:
    """The parts of a DID document that the pipeline uses; a missing or malformed one is None."""

    did: str
    handle: str | None  # claimed by the account, not verified
    pds: str | None  # scheme, host and optional port
    signing_key: PublicKey | None
    labeler: str | None = None  # scheme, host and optional port
    label_key: PublicKey | None = None  # signs labels; the signing key never does


def parse_did_document(document: object, did: str) -> DidDocument:
    """Read the document of a DID. Raises InvalidDataError if it is not this DID's document."""
    if not isinstance(document, dict) or document.get("id") != did:
        raise InvalidDataError("did_document", f"not the document of {did[:100]}")
    return DidDocument(
        did,
        handle=_handle(document),
        pds=_endpoint(document, did, "atproto_pds", "AtprotoPersonalDataServer"),
        signing_key=_key(document, did, "atproto"),
        labeler=_endpoint(document, did, "atproto_labeler", "AtprotoLabeler"),
        label_key=_key(document, did, "atproto_label"),
    )


def _entries(
    document: dict[str, object], name: str, did: str, fragment: str
) -> Iterator[dict[str, object]]:
    """Yield the entries of a list that have an id, which is relative or absolute."""
    entries = document.get(name)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("id") in (f"#{fragment}", f"{did}#{fragment}"):
            yield entry


def _handle(document: dict[str, object]) -> str | None:
    names = document.get("alsoKnownAs")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://") and is_handle(name[5:]):
            return name[5:].lower()
    return None


def _endpoint(document: dict[str, object], did: str, fragment: str, kind: str) -> str | None:
    for service in _entries(document, "service", did, fragment):
        if service.get("type") == kind:
            endpoint = service.get("serviceEndpoint")
            return _origin(endpoint) if isinstance(endpoint, str) else None
    return None


def _origin(endpoint: str) -> str | None:
    """Return an endpoint that is no more than scheme, host and port, else None."""
    if len(endpoint) > _MAX_ENDPOINT or not endpoint.isprintable() or " " in endpoint:
        return None  # a NUL, for example, is refused by every store that it comes to
    try:
        parts = urlsplit(endpoint)
        valid = parts.hostname and parts.port != 0  # a port that is no number raises
    except ValueError:
        return None
    bare = parts.path in {"", "/"} and not parts.query and not parts.fragment
    if parts.scheme not in {"http", "https"} or not valid or not bare or "@" in parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc}"


def _key(document: dict[str, object], did: str, fragment: str) -> PublicKey | None:
    for method in _entries(document, "verificationMethod", did, fragment):
        if method.get("controller") != did:
            continue
        text, kind = method.get("publicKeyMultibase"), method.get("type")
        if not isinstance(text, str) or not isinstance(kind, str):
            return None
        try:
            return PublicKey.parse(text, legacy_type=kind)
        except InvalidDataError:
            return None
    return None
