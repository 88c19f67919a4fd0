"""Signed labels, as a labeler's stream carries them, and their limits.

https://atproto.com/specs/label
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import optional_text, required_text
from rsky_pipeline.atproto.syntax import is_did

_MALFORMED = "invalid_label"
MAX_VALUE_BYTES = 128  # lexicon com.atproto.label.defs#label
MAX_URI_BYTES = 8_192  # of an at:// URI
MAX_TEXT_BYTES = 128  # of a CID or datetime, which are shorter
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
    sig: bytes | None
    fields: Mapping[str, Any] = field(compare=False, repr=False)  # as they came

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return cbor.encode({name: self.fields[name] for name in _SIGNED if name in self.fields})

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
    cid, exp = optional
    if broken := broken_rule(src, uri, val):
        raise InvalidDataError(_MALFORMED, broken)
    others = (cts, cid or "", exp or "")
    if any(len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES for text in others):
        raise InvalidDataError(_MALFORMED, "cid, cts or exp is too long")
    return Label(src, uri, val, cts, cid, bool(negated), exp, signature, value)


def broken_rule(src: str, uri: str, val: str) -> str:
    """Return why no label may have these fields, or nothing."""
    if not is_did(src):
        return f"src is {src[:100]}"
    if not (uri.startswith("at://") or is_did(uri)):
        return f"uri is {uri[:100]}"
    if len(uri.encode("utf-8", "replace")) > MAX_URI_BYTES:
        return f"uri has more than {MAX_URI_BYTES} bytes"
    if not 1 <= len(val.encode("utf-8", "replace")) <= MAX_VALUE_BYTES:
        return f"val is empty or has more than {MAX_VALUE_BYTES} bytes"
    return ""
