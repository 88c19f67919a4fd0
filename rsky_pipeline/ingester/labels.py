"""Label frames of a labeler to entries of `label_live`: one entry a frame. Pure.

The fields are those of the Rust service, and `exp`. Signatures are checked by `label_proof`.
"""

from typing import Any

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import LabelsMessage, Message
from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.ingester.convert import Converted, FrameConverter
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import LABELS_FIELD, encode_labels
from rsky_pipeline.streams.names import LABEL_LIVE

SUBSCRIBE_LABELS = "com.atproto.label.subscribeLabels"
_MAX_VALUE_BYTES = 128  # lexicon com.atproto.label.defs#label
_MAX_URI = 8_192
_MAX_TEXT = 128


class LabelConverter(FrameConverter):
    """Frames of `subscribeLabels`."""

    def count(self) -> None:
        """Count a frame, readable or not."""
        self.tally.labeler_events += 1

    def convert_message(self, message: Message, raw: bytes) -> Converted:
        """Convert a decoded message; a malformed label costs only itself."""
        if not isinstance(message, LabelsMessage):
            return super().convert_message(message, raw)
        entries: list[Entry] = []
        labels: list[dict[str, Any]] = []
        for label in message.labels:
            try:
                labels.append(_fields(label))
            except InvalidDataError as error:
                entries += self.keep_aside(raw, error.reason, str(error))
        if labels:
            payload = encode_labels(message.seq, labels)
            entries.append(Entry(LABEL_LIVE, LABELS_FIELD, payload))
        return Converted(message.seq, None, entries, sum(len(entry.payload) for entry in entries))


def _fields(label: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a label that are passed on. Raises InvalidDataError."""
    source, uri, value = label.get("src"), label.get("uri"), label.get("val")
    if not isinstance(source, str) or not is_did(source):
        raise InvalidDataError("invalid_label", "src is not a DID")
    if not isinstance(uri, str) or not uri.startswith(("at://", "did:")) or len(uri) > _MAX_URI:
        raise InvalidDataError("invalid_label", "uri is not of a record or account")
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= _MAX_VALUE_BYTES:
        raise InvalidDataError("invalid_label", "val is missing or too long")
    negated = label.get("neg")
    if negated is not None and type(negated) is not bool:
        raise InvalidDataError("invalid_label", "neg is not a boolean")
    created = _text(label, "cts")
    if created is None:
        raise InvalidDataError("invalid_label", "cts is missing")
    return {
        "src": source, "uri": uri, "cid": _text(label, "cid"), "val": value, "neg": negated,
        "cts": created, "exp": _text(label, "exp"),
    }  # fmt: skip


def _text(label: dict[str, Any], key: str) -> str | None:
    value = label.get(key)
    if value is None or (isinstance(value, str) and len(value) <= _MAX_TEXT):
        return value
    raise InvalidDataError("invalid_label", f"{key} is not a short text")
