"""The simulated PDS, PLC directory and labeler answer as the real ones."""

import pytest

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.frame import LabelsMessage
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.demo.simulator.accounts import SimulatedAccount
from tests.integration.simulator.kit import Served, messages, served, subscribed

SYNC = "xrpc/com.atproto.sync"
LABELS = "com.atproto.label.subscribeLabels"


async def listed(network: Served, host: str, limit: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    page: dict[str, str | int] = {"limit": limit}
    while True:
        answer = await network.get(f"{host}/{SYNC}.listRepos", **page)
        found += answer["repos"]
        if "cursor" not in answer:
            return found
        page["cursor"] = answer["cursor"]


def hidden(network: Served) -> SimulatedAccount:
    """Have an account of the stream hidden, and return it."""
    for _ in range(20_000):
        network.world.step()
        for account in network.world.accounts:
            if account.born and not account.active and account.repo.rev and not account.deleted:
                return account
    raise AssertionError("nobody was hidden")


async def test_the_list_of_repos_is_complete_whatever_the_page_size() -> None:
    async with served() as network:
        account = hidden(network)
        everybody = await listed(network, network.urls.pds, 1_000)
        assert everybody == await listed(network, network.urls.pds, 7)
        born = {item.did: item for item in network.world.accounts if item.repo.rev}
        assert {item["did"] for item in everybody} == born.keys() - {
            item.did for item in born.values() if item.deleted
        }
        assert all(born[str(item["did"])].repo.rev == item["rev"] for item in everybody)
        active = await listed(network, network.urls.relay, 7)
        assert active == [item for item in everybody if item["active"]]
        assert account.did not in {item["did"] for item in active}


async def test_a_repo_can_be_fetched_and_verified_through_the_relay() -> None:
    async with served() as network:
        did = network.world.accounts[0].did
        client = network.client
        redirect = await client.get(f"{network.urls.relay}/{SYNC}.getRepo", params={"did": did})
        assert redirect.status_code == 302
        answer = await client.get(redirect.headers["location"])
        assert answer.headers["content-type"] == "application/vnd.ipld.car"
        car = read_car(answer.content)
        commit = parse_commit(car.blocks[car.roots[0]])
        document = parse_did_document(await network.get(f"{network.urls.plc}/{did}"), did)
        assert document.pds == network.urls.pds
        assert document.signing_key is not None
        assert verify_commit(commit, document.signing_key)
        assert len(list(walk(car.blocks, commit.data))) == len(network.world.accounts[0].repo)
        latest = await network.get(f"{network.urls.pds}/{SYNC}.getLatestCommit", did=did)
        assert latest == {"cid": str(car.roots[0]), "rev": commit.rev}
        assert Cid.parse(latest["cid"]) == car.roots[0]


async def test_repos_that_cannot_be_had_say_why() -> None:
    async with served() as network:
        account = hidden(network)
        names = {"takendown": "RepoTakendown", "suspended": "RepoSuspended"}
        for method in ("getRepo", "getLatestCommit"):
            url = f"{network.urls.pds}/{SYNC}.{method}"
            answer = await network.client.get(url, params={"did": account.did})
            assert answer.status_code == 400
            assert answer.json()["error"] == names.get(account.status or "", "RepoDeactivated")
            answer = await network.client.get(url, params={"did": "did:plc:nobody"})
            assert answer.json()["error"] == "RepoNotFound"
        status = await network.get(f"{network.urls.pds}/{SYNC}.getRepoStatus", did=account.did)
        assert status["active"] is False


async def test_handles_prove_their_did_both_ways() -> None:
    async with served() as network:
        handle, did = next(iter(network.world.handles.items()))
        resolver = f"{network.urls.pds}/xrpc/com.atproto.identity.resolveHandle"
        assert await network.get(resolver, handle=handle.upper()) == {"did": did}
        known = f"{network.urls.pds}/.well-known/atproto-did"
        answer = await network.client.get(known, headers={"host": handle})
        assert answer.text == did
        document = parse_did_document(await network.get(f"{network.urls.plc}/{did}"), did)
        assert document.handle == handle
        answer = await network.client.get(resolver, params={"handle": "nobody.example.com"})
        assert answer.json()["error"] == "HandleNotFound"


async def test_labels_are_signed_with_the_key_of_the_labeler() -> None:
    from rsky_pipeline.atproto.crypto import PublicKey
    from rsky_pipeline.atproto.labels import parse_label

    async with served() as network, subscribed(network.urls.labeler, LABELS, 0) as socket:
        labeler = network.world.labeler
        document = await network.get(f"{network.urls.plc}/{labeler.did}")
        (method,) = document["verificationMethod"]
        assert method["id"].endswith("#atproto_label")
        assert document["service"][0]["serviceEndpoint"] == network.urls.labeler
        key = PublicKey.parse(method["publicKeyMultibase"])
        await network.network.publish(0, 2_000)
        negated = 0
        for message in await messages(socket, 60):
            assert isinstance(message, LabelsMessage)
            for item in message.labels:
                assert item["src"] == labeler.did
                assert parse_label(item).verify(key)
                negated += item.get("neg", False)
        assert negated


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=%25", "cursor=e30="])
async def test_a_wrong_page_is_refused(query: str) -> None:
    async with served() as network:
        answer = await network.client.get(f"{network.urls.pds}/{SYNC}.listRepos?{query}")
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")


async def test_what_is_not_there_is_not_found() -> None:
    async with served() as network:
        for host in (network.urls.relay, network.urls.pds, network.urls.plc, network.urls.labeler):
            answer = await network.client.get(f"{host}/xrpc/com.example.nothing")
            assert answer.status_code == 404
