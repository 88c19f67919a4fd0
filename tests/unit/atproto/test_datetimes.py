"""Datetimes as records have them, as published lists have them, and as columns must have them."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.datetimes import format_utc, is_datetime, normalize
from tests.unit.atproto.test_identifiers import cases

NORMAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2024-05-06T07:08:09.123Z", "2024-05-06T07:08:09.123Z"),
        ("2024-05-06T21:21:06.123456Z", "2024-05-06T21:21:06.123Z"),
        ("2024-05-06T21:21:06.999999Z", "2024-05-06T21:21:06.999Z"),
        ("2024-05-06T21:21:06Z", "2024-05-06T21:21:06.000Z"),
        ("2024-05-06T21:21:06.1Z", "2024-05-06T21:21:06.100Z"),
        ("2024-05-06T21:21:06+09:00", "2024-05-06T12:21:06.000Z"),
        ("2024-05-06T21:21:06-00:30", "2024-05-06T21:51:06.000Z"),
        ("2024-12-31T23:59:59.999-00:01", "2025-01-01T00:00:59.999Z"),
        ("2999-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z"),
        ("0000-01-01T00:00:00.000Z", "0000-01-01T00:00:00.000Z"),
        ("0000-02-29T12:00:00.000+01:00", "0000-02-29T11:00:00.000Z"),
        ("0001-01-01T00:00:00+01:00", "0000-12-31T23:00:00.000Z"),
        ("2024-02-29T00:00:00.000Z", "2024-02-29T00:00:00.000Z"),
        ("2024-02-30T00:00:00.000Z", "2024-03-01T00:00:00.000Z"),
        ("2023-02-29T00:00:00.000Z", "2023-03-01T00:00:00.000Z"),
        ("2024-12-31T24:00:00.000Z", "2025-01-01T00:00:00.000Z"),
        ("2023-11-01T10:11:12.123456", "2023-11-01T10:11:12.123Z"),
        ("2023-11-01 10:11:12", "2023-11-01T10:11:12.000Z"),
        ("2023-11-01", "2023-11-01T00:00:00.000Z"),
        ("2023-11-01T10:11Z", "2023-11-01T10:11:00.000Z"),
        (" 2023-11-01T10:11:12+0100 ", "2023-11-01T09:11:12.000Z"),
        ("0000-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-00-01T00:00:00.000Z", None),
        ("2024-01-00T00:00:00.000Z", None),
        ("2024-01-32T00:00:00.000Z", None),
        ("2024-01-01T25:00:00Z", None),
        ("2024-01-01T24:00:00.001Z", None),
        ("2024-01-01T24:01:00Z", None),
        ("2024-01-01T23:60:00.000Z", None),
        ("2024-01-01T23:59:60.000Z", None),
        ("2024-01-01T00:00:00+24:00", None),
        ("2024-01-01T00:00:00+01:60", None),
        ("٢٠٢٤-01-01T00:00:00.000Z", None),
        ("2024-01-01T00:00:00.٠٠٠Z", None),
        ("2024-01-01T00:00:00.000Z\n\x00", None),
        ("yesterday", None),
        ("", None),
        ("Z", None),
        ("2024-01-01T00:00:00." + "0" * 100_000 + "Z", None),
    ],
)
def test_normal_form(text: str, normal: str | None) -> None:
    assert normalize(text) == normal


def test_published_datetimes() -> None:
    for case in cases("datetime_syntax_valid"):
        assert is_datetime(case), case
        assert NORMAL.fullmatch(normalize(case) or ""), case
    for name in ("datetime_syntax_invalid", "datetime_parse_invalid"):
        for case in cases(name):
            assert not is_datetime(case), case
    for case in cases("datetime_parse_invalid"):
        assert normalize(case) is None, case


@given(st.datetimes(), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=200)
def test_agrees_with_the_standard_library(moment: datetime, minutes: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    try:
        expected = format_utc(zoned)
    except OverflowError:
        return
    text = zoned.isoformat()
    assert normalize(text) == expected
    assert normalize(expected) == expected
    assert datetime.fromisoformat(expected) == zoned.astimezone(UTC).replace(
        microsecond=zoned.microsecond // 1000 * 1000
    )


@given(st.text("0123456789-:.TZ+ ", max_size=40) | st.text(max_size=40))
@settings(max_examples=200)
def test_any_text_has_a_normal_form_or_none(text: str) -> None:
    normal = normalize(text)
    assert normal is None or (NORMAL.fullmatch(normal) and normalize(normal) == normal)
