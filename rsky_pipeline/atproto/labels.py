"""Signed labels, as a labeler's stream carries them. https://atproto.com/specs/label"""

from dataclasses import dataclass

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import optional_text, required_text
from rsky_pipeline.atproto.syntax import is_did

_MALFORMED = "invalid_label"
MAX_VALUE = 128  # bytes
MAX_URI = 8_192
_SIGNED = ("ver", "src", "uri", "cid", "val", "neg", "cts", "exp")
_TEXTS = ("src", "uri", "val", "cts")
_OPTIONAL_TEXTS = ("cid", "exp")


@dataclass(frozen=True, slots=True)
class Label:
    """One label: `src` says that `val` applies, or no longer applies (`neg`), to `uri`."""

    src: str
    uri: str
    val: str
    cts: str
    cid: str | None
    neg: bool
    exp: str | None
    signed: bytes  # the bytes that the signature is over
    sig: bytes | None

    def verify(self, key: PublicKey) -> bool:
        """Return whether the label was signed with a key; one without a signature was not."""
        return self.sig is not None and key.verify(self.signed, self.sig)


def parse_label(value: object) -> Label:
    """Read a label out of a `#labels` message or an answer to queryLabels. Raises InvalidDataError.

    The signature is over exactly the known fields that came: some labelers sign a `neg` that is
    false, others leave it out.
    """
    if not isinstance(value, dict):
        raise InvalidDataError(_MALFORMED, "a label is a map")
    version, negated, signature = value.get("ver"), value.get("neg"), value.get("sig")
    texts = [required_text(value, name, _MALFORMED) for name in _TEXTS]
    optional = [optional_text(value, name, _MALFORMED) for name in _OPTIONAL_TEXTS]
    if type(version) is not int and version is not None:
        raise InvalidDataError(_MALFORMED, "ver is not a number")
    if type(negated) is not bool and negated is not None:
        raise InvalidDataError(_MALFORMED, "neg is neither true nor false")
    if type(signature) is not bytes and signature is not None:
        raise InvalidDataError(_MALFORMED, "sig is not bytes")
    src, uri, val, cts = texts
    if not is_did(src) or len(uri) > MAX_URI or not (uri.startswith("at://") or is_did(uri)):
        raise InvalidDataError(_MALFORMED, "src or uri is malformed")
    if not val or len(val.encode("utf-8", "replace")) > MAX_VALUE:
        raise InvalidDataError(_MALFORMED, f"val is empty or has more than {MAX_VALUE} bytes")
    signed = cbor.encode({name: value[name] for name in _SIGNED if name in value})
    return Label(src, uri, val, cts, optional[0], bool(negated), optional[1], signed, signature)
