"""Times that hosts write."""

from datetime import UTC, datetime


def timestamp(text: str) -> float | None:
    """Return an event's time in seconds since 1970; it is as free as any text of a host."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
