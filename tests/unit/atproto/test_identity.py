"""DID documents, as directories serve them and as anybody can write them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument, parse_did_document
from tests.data import test_data
from tests.data_frames import corpus_documents

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
KEY = PrivateKey.from_seed("k256", b"repo")
LABEL_KEY = PrivateKey.from_seed("p256", b"labels")


def method(name: str, key: PrivateKey, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{DID}#{name}",
        "type": "Multikey",
        "controller": DID,
        "publicKeyMultibase": key.multibase,
    } | more


def service(name: str, kind: str, endpoint: Any) -> dict[str, Any]:
    return {"id": f"#{name}", "type": kind, "serviceEndpoint": endpoint}


def pds(endpoint: Any = "https://pds.example.com") -> dict[str, Any]:
    return service("atproto_pds", "AtprotoPersonalDataServer", endpoint)


def document(**changes: Any) -> dict[str, Any]:
    return {
        "id": DID,
        "alsoKnownAs": ["https://example.com", "at://Alice.Example.com", "at://later.example.com"],
        "verificationMethod": [method("atproto", KEY), method("atproto_label", LABEL_KEY)],
        "service": [pds(), service("atproto_labeler", "AtprotoLabeler", "http://localhost:2583/")],
    } | changes


def test_everything() -> None:
    assert parse_did_document(document(), DID) == DidDocument(
        DID,
        "alice.example.com",
        "https://pds.example.com",
        KEY.public,
        "http://localhost:2583",
        LABEL_KEY.public,
    )


@pytest.mark.parametrize("value", [None, [], "x", {}, {"id": 1}, {"id": DID + "x"}])
def test_other_documents_are_refused(value: object) -> None:
    with pytest.raises(InvalidDataError):
        parse_did_document(value, DID)


@pytest.mark.parametrize(
    "endpoint",
    [
        None,
        "",
        "pds.example.com",
        "ftp://pds.example.com",
        "https://",
        "https://:443",
        "https://pds.example.com/path",
        "https://pds.example.com?query",
        "https://pds.example.com/#fragment",
        "https://user@pds.example.com",
        "https://:secret@pds.example.com",
        "https://pds.example.com:99999",
        "https://pds.example.com:port",
        "https://[::1",
    ],
)
def test_an_endpoint_is_a_scheme_a_host_and_a_port(endpoint: object) -> None:
    assert parse_did_document(document(service=[pds(endpoint)]), DID).pds is None


def test_the_first_entry_counts() -> None:
    services = [
        service("other", "AtprotoPersonalDataServer", "https://a.example.com"),
        service("atproto_pds", "Other", "https://b.example.com"),
        service("x#atproto_pds", "AtprotoPersonalDataServer", "https://c.example.com"),
        pds("https://d.example.com:8443"),
        pds("https://e.example.com"),
    ]
    assert parse_did_document(document(service=services), DID).pds == "https://d.example.com:8443"
    methods = [
        method("atproto", LABEL_KEY, controller="did:web:other.example.com"),
        method("atproto", KEY),
    ]
    assert parse_did_document(document(verificationMethod=methods), DID).signing_key == KEY.public


@pytest.mark.parametrize(
    "change",
    [
        {"type": None},
        {"publicKeyMultibase": None},
        {"publicKeyMultibase": "z123"},
        {"publicKeyMultibase": KEY.multibase[1:]},
        {"id": "did:plc:other#atproto"},
        {"id": "atproto"},
        {"controller": None},
    ],
)
def test_a_broken_key_is_no_key(change: dict[str, Any]) -> None:
    methods = [method("atproto", KEY) | change]
    parsed = parse_did_document(document(verificationMethod=methods), DID)
    assert parsed.signing_key is None
    assert parsed.pds == "https://pds.example.com"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.just(DID),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "type", "controller", "publicKeyMultibase", "serviceEndpoint"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(JSON, JSON, JSON)
@settings(max_examples=150)
def test_any_other_content_is_ignored(names: Any, methods: Any, services: Any) -> None:
    value = document(alsoKnownAs=names, verificationMethod=methods, service=services)
    assert parse_did_document(value, DID).did == DID


@pytest.mark.parametrize(
    ("name", "handle", "endpoint", "curve"),
    [
        ("identity/did_plc_doc.json", "atproto.com", "https://bsky.social", "k256"),
        ("identity/did_plc_doc_legacy.json", "atproto.com", "https://bsky.social", "k256"),
        ("identity/did_web_doc.json", None, None, None),
        ("repos/fakermaker.didDoc.json", "ebert9014-89.test", "http://localhost:2583", "p256"),
        ("repos/greenground.didDoc.json", "greenground.bsky.social", "https://bsky.social", "k256"),
    ],
)
def test_recorded_documents(
    name: str, handle: str | None, endpoint: str | None, curve: str | None
) -> None:
    value = json.loads(test_data(f"fixtures/indigo/{name}").read_text())
    parsed = parse_did_document(value, value["id"])
    assert (parsed.handle, parsed.pds) == (handle, endpoint)
    assert (parsed.signing_key and parsed.signing_key.curve) == curve


def test_every_document_of_the_window_has_a_key_and_a_host() -> None:
    documents = corpus_documents(test_data("fixtures/jetstream/corpus"))
    assert len(documents) > 100
    for did, value in documents.items():
        parsed = parse_did_document(value, did)
        assert parsed.signing_key is not None
        assert parsed.pds is not None
        assert parsed.handle is not None
