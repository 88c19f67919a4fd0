"""Rate limits as hosts write them."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.network.http import (
    LONGEST_SECONDS,
    RateLimit,
    read_date,
    read_pause,
    read_rate_limit,
    read_retry_after,
)

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "limit"),
    [
        ({"ratelimit-remaining": "7", "ratelimit-reset": "1800000030"}, RateLimit(7, 30.0)),
        ({"ratelimit-remaining": "7", "ratelimit-reset": "30"}, RateLimit(7, 30.0)),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "1700000000"}, RateLimit(0, 0.0)),
        ({"ratelimit": '"default";r=50;t=12'}, RateLimit(50, 12.0)),
        ({"ratelimit-remaining": "7", "ratelimit-reset": "999999"}, RateLimit(7, 3_600.0)),
        ({"ratelimit-remaining": "-1", "ratelimit-reset": "5"}, None),
        ({"ratelimit-remaining": "7"}, None),
        ({"ratelimit": "nonsense"}, None),
        ({}, None),
    ],
)
def test_limits(headers: dict[str, str], limit: RateLimit | None) -> None:
    assert read_rate_limit(headers, NOW) == limit


def test_pauses() -> None:
    date = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)
    assert read_retry_after(date, NOW) == 90.0
    assert [read_retry_after(text, NOW) for text in ("5", "999999999", None, "soon", "")] == [
        5.0, LONGEST_SECONDS, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "5", "ratelimit-remaining": "0", "ratelimit-reset": "70"}, 5.0),
        (429, {"ratelimit-remaining": "0", "ratelimit-reset": "1800000070"}, 70.0),
        (429, {"ratelimit": '"default";r=0;t=12'}, 12.0),
        (429, {"ratelimit-remaining": "3", "ratelimit-reset": "70"}, None),  # of another limit
        (429, {}, None),
        (503, {"retry-after": "5"}, 5.0),
        (503, {"ratelimit-remaining": "0", "ratelimit-reset": "70"}, None),
    ],
)
def test_the_pause_after_a_refusal(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    assert read_pause(status, headers, NOW) == seconds


@given(st.text(max_size=120), st.text(max_size=30))
def test_nothing_that_a_host_writes_raises(text: str, other: str) -> None:
    wait = read_retry_after(text, NOW)
    assert wait is None or 0.0 <= wait <= LONGEST_SECONDS
    headers = {"ratelimit": text, "ratelimit-remaining": other, "ratelimit-reset": text}
    limit = read_rate_limit(headers, NOW)
    assert limit is None or 0.0 <= limit.reset_seconds <= LONGEST_SECONDS


@pytest.mark.parametrize(
    "text",
    ["", " ", "-", ",", "\0", "now", "Mon, 01 Jan 0001 00:00:00 -0000", "1 Jan 99999 00:00:00 GMT",
     "Thu, 31 Feb 2026 00:00:00 GMT", "1 Jan 2026 00:00:00 +9999999999",
     "1 Jan 2026 " + "9" * 5_000],
)  # fmt: skip
def test_a_date_that_is_none_raises_nothing(text: str) -> None:
    found = read_date(text)
    assert found is None or isinstance(found, float)


@given(st.text(st.sampled_from("0123456789:,+- JanFebMon\0"), max_size=60))
def test_dates_of_odd_parts_raise_nothing(text: str) -> None:
    read_date(text)
