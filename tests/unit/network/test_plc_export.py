"""Following the directory: every account that changes, once, and nothing lost at a page's end."""

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trio.testing

from rsky_pipeline.network import plc_export
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.plc_export import PlcExport

START = datetime.now(UTC).replace(microsecond=0)


class FakeDirectory:
    """A directory's export, as the official server has it: after a time, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations: list[tuple[datetime, str]] = []
        self.requests = 0
        self.failing = ""
        outer = self

        async def get_bytes(_: HttpClient, url: str, **__: object) -> bytes:
            outer.requests += 1
            if outer.failing:
                raise HttpError("status", outer.failing, status=503)
            query = parse_qs(urlsplit(url).query)
            after = datetime.fromisoformat(query["after"][0])
            lines = [
                json.dumps({"did": did, "cid": f"{did} {time}", "operation": {}, "nullified": False,
                            "createdAt": time.isoformat(timespec="milliseconds")})
                for time, did in sorted(outer.operations) if time > after
            ]  # fmt: skip
            return "\n".join(lines[: int(query["count"][0])]).encode()

        monkeypatch.setattr(HttpClient, "get_bytes", get_bytes)

    def add(self, did: str, seconds: float) -> None:
        self.operations.append((START + timedelta(seconds=seconds), did))


async def looked(export: PlcExport) -> int:
    pages = 1
    while await export.look():
        pages += 1
    return pages


async def test_each_change_is_named_once_and_late_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    directory, changed = FakeDirectory(monkeypatch), list[str]()
    async with HttpClient(allow_private=True) as http:
        export = PlcExport(http, "http://plc.test", changed.append)
        directory.add("long ago", -7_200)
        directory.add("a", 1)
        assert await looked(export) == 1
        directory.add("b", 3)
        directory.add("late", 0.5)  # became visible after others with a later time
        await looked(export)
        await looked(export)
    assert changed == ["a", "late", "b"]


async def test_pages_are_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plc_export, "PAGE_OPERATIONS", 10)
    directory, changed = FakeDirectory(monkeypatch), list[str]()
    for number in range(95):
        directory.add(f"did:plc:{number:03d}", number / 100)
    async with HttpClient(allow_private=True) as http:
        export = PlcExport(http, "http://plc.test", changed.append)
        assert await looked(export) == 10
        assert len(changed) == 95
        await looked(export)  # all within the overlap are read again, and none is named again
        assert len(changed) == 95


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"did": 1, "cid": "x", "createdAt": "2026-01-01T00:00:00Z"}',
             b'{"did": "a", "cid": "x", "createdAt": "soon"}', b"<html>"],
)  # fmt: skip
async def test_what_is_no_export_is_an_error(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    async def get_bytes(*_: object, **__: object) -> bytes:
        return line

    monkeypatch.setattr(HttpClient, "get_bytes", get_bytes)
    async with HttpClient(allow_private=True) as http:
        with pytest.raises(HttpError):
            await PlcExport(http, "http://plc.test", print).look()


async def test_a_directory_that_fails_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    directory, changed = FakeDirectory(monkeypatch), list[str]()
    directory.failing = "down"
    async with HttpClient(allow_private=True) as http, trio.open_nursery() as nursery:
        nursery.start_soon(PlcExport(http, "http://plc.test", changed.append).run)
        await trio.sleep(300)
        assert 5 < directory.requests < 60
        directory.failing = ""
        directory.add("a", 1)
        await trio.sleep(120)
        nursery.cancel_scope.cancel()
    assert changed == ["a"]
