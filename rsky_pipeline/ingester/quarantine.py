"""Raw frames that could not be used, kept so that somebody can find out why."""

from base64 import b64encode

import orjson

from rsky_pipeline.streams.append import Entry

FRAME_FIELD = b"frame"
MAX_KEPT = 10_000  # entries; the oldest are the interesting ones, later ones are only counted
MAX_BYTES = 64 * 1024  # of one frame


class Quarantine:
    """The entries for one stream of raw frames, which never grows far above its limit."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._length = 0

    def observe_length(self, length: int) -> None:
        """Take note of the stream's real length."""
        self._length = length

    def entry(self, raw: bytes, *, host: str, reason: str, error: str) -> Entry | None:
        """Return the entry that keeps a frame, or None when enough are kept already."""
        if self._length >= MAX_KEPT:
            return None
        self._length += 1
        body = {
            "host": host,
            "reason": reason,
            "error": error[:500],
            "size": len(raw),
            "frame": b64encode(raw[:MAX_BYTES]).decode("ascii"),
        }
        return Entry(self.stream, FRAME_FIELD, orjson.dumps(body))
