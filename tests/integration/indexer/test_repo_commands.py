"""`index-repo`, `db compare`, `db recount`, `db rejected`: what is wrong is found and put right."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.cli import main
from rsky_pipeline.demo.simulator.repo import SimulatedRepo, Write
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import now_text, read_entry
from rsky_pipeline.indexer.core.labels import LabelRow, apply_labels
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import document
from tests.integration.indexer.golden import Note, expect
from tests.integration.indexer.kit import (
    Deletion,
    Event,
    Network,
    Put,
    Tables,
    did_of,
    recounted,
    rev_of,
    state,
    time_of,
)
from tests.integration.indexer.recorded import expected_rows, refused_uris
from tests.stores import execute

KEY = PrivateKey.from_seed("k256", b"account")


@pytest.fixture
def hosts() -> Iterator[FakeHosts]:
    with FakeHosts() as running:
        yield running


@pytest.fixture
def run(tables: Tables, hosts: FakeHosts, tmp_path: Path) -> Any:
    def command(*arguments: str, over: tuple[str, ...] = ()) -> Result:
        plc = over or ("--plc-url", hosts.url)
        flags = ("--database-url", tables.url, *plc, "--data-dir", str(tmp_path))
        more = ("--set", "allow_private_hosts=true", "--set", "backfiller_host_rate=1000")
        return CliRunner().invoke(main, [*arguments, *flags, *more])

    return command


def serve(hosts: FakeHosts, who: str, puts: Sequence[Put], number: int) -> SimulatedRepo:
    """Have a PDS serve a repo with these records, at the rev of this number."""
    repo = SimulatedRepo(did_of(who), KEY)
    repo.load(
        [Write(f"{put.collection}/{put.rkey}", put.record) for put in puts], rev_of(number), 0
    )
    hosts.add(did_of(who), document(did_of(who)), repo.car())
    return repo


def test_a_repo_is_brought_exactly_up_to_date(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network
) -> None:
    hers = net.post("bob")
    post, like, follow = net.post("ann"), net.like("ann", hers), net.follow("ann", "bob")
    gone = [net.post("ann", "gone"), net.repost("ann", hers)]
    tables.apply(hers, post, like, follow, *gone, net.like("bob", post))
    tables.database.execute("UPDATE record SET rev = NULL WHERE uri = %s", (gone[1].uri,))
    edited = net.update(post, {"text": "edited"})
    added = net.follow("ann", "cyd")
    serve(hosts, "ann", [edited, like, follow, added], 50)
    later = net.put("ann", "app.bsky.graph.follow", {"subject": did_of("dan")}, number=60)
    tables.apply(later)

    result = run("db", "compare", "--did", did_of("ann"), "--json")
    assert result.exit_code == 6
    (before,) = json.loads(result.stdout)["repos"]
    of = before["collections"]
    assert of["app.bsky.feed.post"]["examples"] == {"different": [post.uri], "extra": [gone[0].uri]}
    assert of["app.bsky.feed.repost"]["examples"] == {"extra": [gone[1].uri]}
    assert of["app.bsky.graph.follow"]["examples"] == {"missing": [added.uri]}
    assert of["app.bsky.graph.follow"]["newer"] == 1

    result = run("index-repo", did_of("ann"), "--json")
    assert result.exit_code == 0, result.output
    (done,) = json.loads(result.stdout)["repos"]
    assert done["records"] == 4
    assert (done["created"], done["updated"], done["deleted"], done["unchanged"]) == (1, 1, 2, 2)
    assert tables.rows("post", "text", f"creator = '{did_of('ann')}'") == [("edited",)]
    assert tables.rows("repost") == []
    assert tables.profile_counts("ann") == (0, 3, 1)
    assert tables.counts(post) == (1, 0, 0, 0)
    recounted(tables)
    assert dict(tables.rows("actor_sync", 'did, "repoRev"'))[did_of("ann")] == rev_of(60)
    floors = tables.database.query("SELECT did, rev FROM rsky_pipeline.repo_floor")
    assert floors == [(did_of("ann"), rev_of(50))]

    assert run("db", "compare", "--did", did_of("ann")).exit_code == 0
    now = state(tables)
    (again,) = json.loads(run("index-repo", did_of("ann"), "--json").stdout)["repos"]
    assert (again["created"], again["updated"], again["deleted"]) == (0, 0, 0)
    assert state(tables) == now
    tables.apply(*gone)
    assert state(tables) == now, "what came before the floor stays without effect"


def test_any_selected_collection_goes_into_record(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network
) -> None:
    """As history, live, edited and deleted; labels of it and the purge of its account as well."""
    kind, other = "site.standard.document", "com.example.thing"
    first, foreign = net.put("ann", kind, {"title": "one"}), net.put("ann", other, {"n": 1})
    serve(hosts, "ann", [first, foreign, net.post("ann")], 50)
    chosen = ("--set", "collections=app.bsky.,site.standard.")
    (before,) = json.loads(run("db", "compare", "--did", did_of("ann"), "--json", *chosen).stdout)[
        "repos"
    ]
    assert before["collections"][kind]["examples"] == {"missing": [first.uri]}
    assert other not in before["collections"]
    assert run("index-repo", did_of("ann"), *chosen).exit_code == 0
    assert run("db", "compare", "--did", did_of("ann"), *chosen).exit_code == 0
    where = f"uri LIKE '%/{kind}/%' OR uri LIKE '%/{other}/%'"
    assert tables.rows("record", "uri", where) == [(first.uri,)]

    collections = SelectedCollections(["app.bsky.", "site.standard."])

    def apply(*events: Put | Deletion) -> None:
        readings = [read_entry({b"event": event.payload}, collections) for event in events]
        apply_batch(tables.database, readings, collections)

    live = [net.put("ann", kind, {"title": title}, number=60 + n) for n, title in enumerate("ab")]
    edited = net.put("ann", kind, {"title": "new"}, live[0].rkey, action="update", number=70)
    apply(*live, net.put("ann", other, {"n": 2}, number=65))
    apply(edited, Deletion(first, 71), Deletion(live[1], 72))
    assert tables.rows("record", "uri, cid", where) == [(live[0].uri, edited.cid)]
    label = LabelRow(did_of("mod"), live[0].uri, "", "spam", False, time_of(80), None)
    assert apply_labels(tables.database, [label]) == (1, 0)
    assert tables.rows("label", "uri, val") == [(live[0].uri, "spam")]
    purge_account(tables.database, did_of("ann"), collections)
    assert tables.rows("record", "uri", where) == []


def test_a_repo_is_indexed_in_whole_rows(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network
) -> None:
    """First as it is, then with a new profile and post, one follow less, and an invalid post."""
    fields = {"displayName": "ann", "description": "old"}
    profile = net.put("ann", "app.bsky.actor.profile", fields, "self")
    posts = [net.post("ann") for _ in range(4)]
    follows = [net.follow("ann", who) for who in ("bob", "cyd", "dan")]
    others = [net.follow("bob", "ann"), net.follow("cyd", "ann")]
    like = net.like("bob", posts[0])
    events: list[Event] = [profile, *posts, *follows, *others, like]
    tables.apply(*events)
    told: list[Note] = [
        *((put, who, "follow", None) for put, who in zip(follows, ("bob", "cyd", "dan"),
                                                        strict=True)),
        *((put, "ann", "follow", None) for put in others), (like, "ann", "like", posts[0]),
    ]  # fmt: skip
    people = {"ann": (2, 3, 4), "bob": (1, 1, 0), "cyd": (1, 1, 0), "dan": (1, 0, 0)}
    counts = [(posts[0], (1, 0, 0, 0))]

    def indexed(number: int, puts: Sequence[Put], *skipped: Put) -> dict[str, dict[str, Any]]:
        """Index the repo; return the columns that tell its rev."""
        repo = serve(hosts, "ann", [*puts, *skipped], number)
        assert run("index-repo", did_of("ann")).exit_code == 0
        head = {"repoRev": rev_of(number), "commitCid": str(repo.head)}
        return {put.uri: {"rev": rev_of(number)} for put in puts} | {did_of("ann"): head}

    changed = indexed(50, [profile, *posts, *follows])
    expect(tables, events, told=told, people=people, counts=counts, changed=changed)

    described = net.update(profile, {"description": "new"})
    added, invalid = net.post("ann", "new"), net.post("ann", text=0)  # type: ignore[arg-type]
    before = now_text()
    changed = indexed(60, [described, *posts, *follows[:2], added], invalid)
    for put in (described, added):  # seen now, and sorted by what they claim
        ((time,),) = tables.rows("record", '"indexedAt"', f"uri = '{put.uri}'")
        assert before <= time <= now_text()
        changed[put.uri]["indexedAt"] = time
    expect(
        tables, [*events, described, added, net.delete(follows[2])],
        told=[note for note in told if note[0] is not follows[2]], counts=counts, changed=changed,
        people={"ann": (2, 2, 5), "bob": (1, 1, 0), "cyd": (1, 1, 0)},
    )  # fmt: skip


def test_an_empty_repo_of_an_unknown_account(run: Any, tables: Tables, hosts: FakeHosts) -> None:
    serve(hosts, "ann", [], 5)
    assert run("index-repo", did_of("ann")).exit_code == 0
    assert tables.rows("actor", "did") == [(did_of("ann"),)]
    assert tables.rows("actor_sync", '"repoRev"') == [(rev_of(5),)]


def test_a_file_of_repos_goes_on_past_failures(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network, tmp_path: Path
) -> None:
    for who in ("ann", "bob"):
        serve(hosts, who, [net.post(who)], 50)
    hosts.add(did_of("cyd"), document(did_of("cyd")), b"")
    del hosts.repos[did_of("cyd")]
    file = tmp_path / "dids.csv"
    lines = ["did,name", f"{did_of('ann')},Ann", did_of("cyd"), "nonsense", f'"{did_of("bob")}"']
    file.write_text("\n".join(lines))
    result = run("index-repo", "--file", str(file))
    assert result.exit_code == 1
    assert "lines without a DID: 1" in result.stderr
    assert f"{did_of('cyd')}: RepoNotFound" in result.stderr
    assert result.stdout.splitlines()[-1] == "repos up to date: 2, failed: 1"
    assert {row[0] for row in tables.rows("post", "creator")} == {did_of("ann"), did_of("bob")}
    assert run("index-repo").exit_code == 2
    assert run("index-repo", "ann.test").exit_code == 2
    assert run("index-repo", "--file", str(tmp_path / "none.csv")).exit_code == 2
    assert run("db", "compare", "--did", did_of("cyd")).exit_code == 1
    away = ("--plc-url", "http://127.0.0.1:1")
    assert run("index-repo", did_of("ann"), over=away).exit_code == 69
    assert run("db", "compare", "--did", did_of("ann"), over=away).exit_code == 69


@pytest.mark.parametrize("sqlstate", ["21000", "55P03", "XX000"])
def test_a_repo_whose_statements_fail_does_not_end_a_file_of_repos(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network, tmp_path: Path, sqlstate: str
) -> None:
    execute(
        tables.url,
        "CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.did = '{did_of('ann')}' THEN RAISE EXCEPTION 'it is refused' "
        f"USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON rsky_pipeline.repo_floor "
        "FOR EACH ROW EXECUTE FUNCTION bsky.refuse()",
    )
    for who in ("ann", "bob"):
        serve(hosts, who, [net.post(who)], 50)
    file = tmp_path / "dids.csv"
    file.write_text(f"{did_of('ann')}\n{did_of('bob')}\n")
    result = run("index-repo", "--file", str(file), "--json")
    assert result.exit_code == 1
    done = {item["did"]: item for item in json.loads(result.stdout)["repos"]}
    assert done[did_of("ann")]["error"] == "internal_error"
    assert f"it is refused (SQLSTATE {sqlstate})" in done[did_of("ann")]["message"]
    assert done[did_of("bob")]["created"] == 1


def test_a_server_that_refuses_every_statement_settles_no_repo(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network
) -> None:
    execute(
        tables.url,
        "CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'out of order' USING ERRCODE = 'XX000'; END $$",
    )
    for table in ("bsky.record", "rsky_pipeline.repo_floor"):
        execute(
            tables.url,
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION bsky.refuse()",
        )
    serve(hosts, "ann", [net.post("ann"), net.follow("ann", "bob")], 50)
    result = run("index-repo", did_of("ann"), "--json")
    assert result.exit_code != 0
    assert "out of order (SQLSTATE XX000)" in result.stderr
    assert tables.database.query("SELECT did FROM rsky_pipeline.repo_floor") == []


def test_refused_records_are_found_by_reason(
    run: Any, tables: Tables, hosts: FakeHosts, net: Network
) -> None:
    good = net.post("ann")
    too_long = net.post("ann", "x" * 4_000)
    number = net.put("ann", "app.bsky.feed.post", {"text": 42})
    serve(hosts, "ann", [good, too_long, number], 50)
    (done,) = json.loads(run("index-repo", did_of("ann"), "--json").stdout)["repos"]
    assert done["refused"] == {"too_long": 1, "wrong_type": 1}
    (found,) = json.loads(run("db", "compare", "--did", did_of("ann"), "--json").stdout)["repos"]
    assert found["differences"] == 0
    assert found["collections"]["app.bsky.feed.post"]["refused"] == 2
    listed = json.loads(run("db", "rejected", "--json").stdout)
    assert {(item["reason"], item["records"]) for item in listed["counts"]} == {
        ("too_long", 1), ("wrong_type", 1),
    }  # fmt: skip
    result = run("db", "rejected", "--uri", number.uri)
    assert f"{number.uri}\n  wrong_type: text is not a text" in result.stdout
    record = {"text": "now a text"}
    tables.apply(net.put("ann", number.collection, record, number.rkey, number=60))
    assert run("db", "rejected", "--uri", number.uri).stdout == "no rejected records\n"


def test_counts_that_drifted_are_reported_and_repaired(
    run: Any, tables: Tables, net: Network
) -> None:
    post = net.post("ann")
    reply, hidden = net.reply("bob", post), net.reply("cyd", post)
    tables.apply(post, reply, hidden, net.like("bob", post), net.quote("bob", post))
    tables.apply(net.repost("cyd", post), net.follow("bob", "ann"))
    tables.database.execute(
        'UPDATE post SET "violatesThreadGate" = true WHERE uri = %s', (hidden.uri,)
    )
    tables.database.execute('UPDATE post_agg SET "likeCount" = 7, "bookmarkCount" = 3')
    tables.database.execute("DELETE FROM profile_agg WHERE did = %s", (did_of("bob"),))
    found = json.loads(run("db", "recount", "--did", did_of("ann"), "--dry-run", "--json").stdout)
    assert {(item["column"], item["stored"], item["counted"]) for item in found["drifts"]} == {
        ("likeCount", 7, 1), ("replyCount", 2, 1),
    }  # fmt: skip
    assert tables.counts(post) == (7, 2, 1, 1)
    assert run("db", "recount", "--all", "--dry-run").exit_code == 6
    assert run("db", "recount", "--uri", post.uri).exit_code == 0
    assert tables.counts(post) == (1, 1, 1, 1)
    result = run("db", "recount", "--all")
    assert result.exit_code == 0
    assert "2 counts repaired" in result.stdout
    recounted(tables)
    assert {row[0] for row in tables.rows("post_agg", '"bookmarkCount"')} == {3}
    assert run("db", "recount", "--all", "--dry-run").exit_code == 0
    assert run("db", "recount").exit_code == 2


def test_the_recorded_network_from_its_repos(run: Any, tables: Tables, hosts: FakeHosts) -> None:
    """The repos of official servers, fetched one by one: the records of the official database."""
    folder = test_data("recorded")
    documents = json.loads((folder / "dids.json").read_text())
    index = json.loads((folder / "cars" / "index.json").read_text())
    served = [item["did"] for item in index if "file" in item]
    for item in index:
        if "file" in item:
            car = (folder / "cars" / item["file"]).read_bytes()
            hosts.add(item["did"], documents[item["did"]], car)
    result = run("index-repo", *served, "--json")
    assert result.exit_code == 0, result.output
    official = {
        row["uri"]: row["cid"] for row in expected_rows(folder, "record") if row["did"] in served
    }
    ours: dict[str, str] = dict(tables.rows("record", "uri, cid"))
    refused = refused_uris(folder)
    assert {uri: cid for uri, cid in ours.items() if uri not in refused} == {
        uri: cid for uri, cid in official.items() if uri not in refused
    }
    recounted(tables)
    compared = run("db", "compare", *(f"--did={did}" for did in served))
    assert compared.exit_code == 0, compared.output
    assert tables.notified() == []
