"""The present, as it is written into columns."""

from datetime import UTC, datetime

from rsky_pipeline.atproto.datetimes import format_utc


def now_text() -> str:
    """Return the present in the normal form."""
    return format_utc(datetime.now(UTC))
