"""Reference list opt-outs: their table, before an AppView makes it, when it appears, and after."""

from typing import Any

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.schema import check, initialise
from rsky_pipeline.database.schema.official import retire_stand_in
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from tests.integration.indexer.kit import Network, Put, Tables, did_of

OPT_OUT = "app.bsky.graph.referencelistoptout"
TABLE = "reference_list_opt_out"


def list_of(who: str, rkey: str = "1") -> str:
    return f"at://{did_of(who)}/app.bsky.graph.list/{rkey}"


def opt_out(net: Network, who: str, subject: str, **options: Any) -> Put:
    return net.put(who, OPT_OUT, {"subject": subject}, **options)


def standing(tables: Tables) -> list[tuple[Any, ...]]:
    return tables.rows(TABLE, 'uri, "subjectUri"')


@pytest.mark.parametrize(
    ("subject", "has_row"),
    [
        (list_of("bob"), True),
        ("at://did:web:bob.example.com/app.bsky.graph.list/self", True),
        ("at://bob.example.com/app.bsky.graph.list/1", False),
        (f"at://{did_of('bob')}/app.bsky.graph.starterpack/1", False),
        (f"at://{did_of('bob')}/app.bsky.graph.list", False),
        (f"at://{did_of('bob')}", False),
        ("at://did:example:bob/app.bsky.graph.list/1", False),
    ],
)
def test_only_a_usable_subject_has_a_row(
    tables: Tables, net: Network, subject: str, has_row: bool
) -> None:
    put, again = opt_out(net, "ann", subject), opt_out(net, "ann", subject)
    tables.apply(put)
    tables.apply(again)
    assert standing(tables) == ([(put.uri, subject)] if has_row else [])
    assert len(tables.rows("record", "uri")) == 2
    assert tables.rows("duplicate_record", "uri") == ([(again.uri,)] if has_row else [])
    tables.apply(net.delete(put), net.delete(again))
    assert standing(tables) == tables.rows("record", "uri") == []


def make_official_table(tables: Tables) -> None:
    initialise(tables.url, appview="0.0.280")


def place(tables: Tables) -> set[str]:
    sql = f"SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = '{TABLE}'"
    return {name for (name,) in tables.database.query(sql)}


def test_rows_move_into_the_table_that_an_appview_makes(tables: Tables, net: Network) -> None:
    """The connection that writes has prepared its statements before; it finds the other table."""
    puts = [opt_out(net, name, list_of("bob")) for name in ("ann", "cid", "dan", "eve", "fay")]
    for put in puts:  # often enough for prepared statements
        tables.apply(put)
    assert place(tables) == {"rsky_pipeline"}
    before = standing(tables)
    make_official_table(tables)
    assert place(tables) == {"bsky"}
    assert check(tables.url) == []
    assert standing(tables) == before
    tables.apply(net.delete(puts[0]), opt_out(net, "gus", list_of("bob")))
    assert len(standing(tables)) == len(puts)
    purge_account(tables.database, did_of("cid"), registry.load())
    assert len(standing(tables)) == len(puts) - 1


def test_what_happens_between_the_appearance_and_the_move_counts(
    tables: Tables, net: Network
) -> None:
    gone, stays, rival = (opt_out(net, name, list_of("bob")) for name in ("ann", "cid", "dan"))
    tables.apply(gone, stays, rival)
    with Database.connect(tables.url, name="other") as other:
        ((definition,),) = other.query(
            "SELECT format('CREATE TABLE bsky.%%s (LIKE rsky_pipeline.%%s INCLUDING ALL)', "
            "%s::text, %s::text)", (TABLE, TABLE),
        )  # fmt: skip
        other.execute(str(definition))
    with Database.connect(tables.url, name="fresh") as fresh:
        late = Tables(tables.url)
        late.apply(net.delete(gone))
        second = opt_out(net, "dan", list_of("bob"))
        late.apply(second)
        late.database.close()
        assert retire_stand_in(fresh)
        assert not retire_stand_in(fresh)
    assert standing(tables) == [(stays.uri, list_of("bob")), (second.uri, list_of("bob"))]
    assert tables.rows("duplicate_record", 'uri, "duplicateOf"') == [(rival.uri, second.uri)]
    assert place(tables) == {"bsky"}


def test_a_reply_whose_root_names_a_handle_is_refused(tables: Tables, net: Network) -> None:
    parent = net.post("ann")
    named = {"uri": "at://ann.example.com/app.bsky.feed.post/1", "cid": parent.reference["cid"]}
    tables.apply(parent)
    tables.apply_any(net.post("bob", reply={"root": named, "parent": parent.reference}))
    tables.apply(net.post("cid", reply={"root": parent.reference, "parent": parent.reference}))
    assert len(tables.rows("post", "uri")) == len(tables.rows("record", "uri")) == 2
    assert tables.rows("rejected_record", "reason") == [("invalid_uri",)]
