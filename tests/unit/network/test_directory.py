"""Which hosts are asked for the documents of did:web, and which never."""

import pytest

from rsky_pipeline.network import directory as module
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.http import HttpClient, HttpError
from tests.breaking import BAD_PLC, PARTS, break_part


@pytest.mark.parametrize(
    ("did", "url"),
    [
        ("did:web:example.com", "https://example.com"),
        ("did:web:example.com.", "https://example.com"),
        ("did:web:Example.COM", "https://example.com"),
    ],
)
async def test_a_host_name_is_all_that_counts(did: str, url: str) -> None:
    async with HttpClient(allow_private=False) as http:
        assert Directory(http, "https://plc.test").web_host(did).http_url() == url


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize(
    "did",
    ["did:web:example.com:path", "did:web:example.com%3A99999", "did:web:example.com%3Aabc",
     "did:web:a..b", "did:web:.", "did:web:%3A", "did:web:-", f"did:web:{'a' * 64}.com",
     "did:web:a%2Fb.com", "did:web:user%40a.com"],
)  # fmt: skip
async def test_a_did_web_that_names_no_host_is_not_found(did: str, allow_private: bool) -> None:
    async with HttpClient(allow_private=allow_private) as http:
        directory = Directory(http, "https://plc.test", allow_private=allow_private)
        with pytest.raises(IdentityNotFoundError):
            await directory.resolve(did)


async def test_a_port_counts_only_where_hosts_may_be_private() -> None:
    async with HttpClient(allow_private=True) as http:
        local = Directory(http, "https://plc.test", allow_private=True)
        assert local.web_host("did:web:localhost%3A2583").http_url() == "http://localhost:2583"
        public = Directory(http, "https://plc.test")
        with pytest.raises(IdentityNotFoundError):
            public.web_host("did:web:example.com%3A8080")


@pytest.mark.parametrize("part", ["pool", "getaddrinfo"])
async def test_a_defect_in_a_request_is_a_document_that_nobody_has_now(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_part(monkeypatch, part)
    async with HttpClient(allow_private=True) as http:
        directory = Directory(http, f"http://127.0.0.1:9/{BAD_PLC}"[:18], allow_private=True)
        with pytest.raises(IdentityUnavailableError):
            await directory.resolve(PARTS[part])


@pytest.mark.parametrize(
    ("status", "of_account"),
    [(400, True), (414, True), (422, True), (403, False), (429, False), (500, False)],
)
async def test_a_did_that_the_directory_refuses_says_nothing_of_others(
    monkeypatch: pytest.MonkeyPatch, status: int, of_account: bool
) -> None:
    async def refuse(*_: object, **__: object) -> object:
        raise HttpError("status", f"answered {status}", status=status)

    monkeypatch.setattr(HttpClient, "get_json", refuse)
    async with HttpClient(allow_private=True) as http:
        directory = Directory(http, "http://plc.test", allow_private=True)
        with pytest.raises(IdentityUnavailableError) as caught:
            await directory.resolve("did:plc:x")
    assert caught.value.of_account is of_account


async def failures(*answers: tuple[str, int]) -> list[bool]:
    """Ask a directory for each DID, and have it answer so; return whose fault failures are."""
    found: list[bool] = []
    did, status = "", 200

    async def answer(*_: object, **__: object) -> object:
        if status != 200:
            raise HttpError("status", f"answered {status}", status=status)
        return {"id": did}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpClient, "get_json", answer)
        async with HttpClient(allow_private=True) as http:
            directory = Directory(http, "http://plc.test", forced_pause=0.0)
            for each in answers:
                did, status = each
                try:
                    await directory.resolve(did, force=True)
                except IdentityUnavailableError as error:
                    found.append(error.of_account)
    return found


async def test_a_directory_that_goes_on_answering_for_others_fails_for_one_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)
    a, b, c = (f"did:plc:{letter}" for letter in "abc")
    assert await failures((b, 200), (a, 403), (a, 503), (a, 503)) == [False] * 3, "all may fail"
    assert await failures((a, 403), (b, 200), (a, 503)) == [False, True]
    assert await failures((a, 503), (b, 503), (a, 503)) == [False] * 3
    assert await failures((a, 503), ("did:web:b.test", 200), (a, 503)) == [False] * 2
    assert await failures((a, 503), (b, 200), (a, 429)) == [False] * 2, "a limit is of who asks"
    monkeypatch.setattr(module, "ALONE_SECONDS", 60.0)
    assert await failures((a, 403), (b, 200), (a, 503)) == [False] * 2, "too soon to know"
    assert await failures((a, 403), (b, 200), (c, 503)) == [False] * 2


async def test_an_answer_ends_the_failures_of_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)
    a, b = "did:plc:a", "did:plc:b"
    assert await failures((a, 503), (b, 200), (a, 503), (a, 200), (a, 503)) == [False, True, False]


async def test_a_no_holds_no_longer_than_until_it_may_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[str]()
    known = {"did:plc:a": {"id": "did:plc:a"}}

    async def answer(_: HttpClient, url: str, **__: object) -> object:
        did = url.rpartition("/")[2]
        asked.append(did)
        if did not in known:
            raise HttpError("status", "answered 404", status=404)
        return known[did]

    monkeypatch.setattr(HttpClient, "get_json", answer)
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    async with HttpClient(allow_private=True) as http:
        directory = Directory(http, "http://plc.test", forced_pause=5.0)
        await directory.resolve("did:plc:a")
        for force in (False, False, True):
            with pytest.raises(IdentityNotFoundError):
                await directory.resolve("did:plc:b", force)
        assert asked == ["did:plc:a", "did:plc:b"]
        now[0] += 6.0
        known["did:plc:b"] = {"id": "did:plc:b"}
        await directory.resolve("did:plc:b")
        await directory.resolve("did:plc:a")
    assert asked == ["did:plc:a", "did:plc:b", "did:plc:b"]
