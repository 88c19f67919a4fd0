"""Another ingester is one whose note is renewed while we look, not one that was killed."""

import orjson
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.ingester.others import OtherIngesters
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health


def others() -> OtherIngesters:
    health = Health("ingester", 1)
    return OtherIngesters(
        WorkerContext(
            settings=Settings(), role="ingester", instance=1, consumer="x",
            registry=CollectorRegistry(), ready=lambda: None, activity=health.activity,
            health=health.report,
        )
    )  # fmt: skip


def note(count: int, who: str = "host-b pid 7") -> bytes:
    return orjson.dumps([count, who])


def test_an_ingester_that_renews_its_note_is_named() -> None:
    looker = others()
    looker.observe({b"other": note(1)}, 0.0)
    assert looker.verdicts == []  # it may have been killed just now
    looker.observe({b"other": note(2)}, 5.0)
    (found,) = looker.verdicts
    assert (found.status, found.rule.name) == ("fail", "second_ingester")
    assert "host-b pid 7" in found.figure
    looker.observe({b"other": note(2)}, 30.0)  # it has ended
    assert looker.verdicts == []


def test_ourselves_and_notes_of_the_dead_are_nobody() -> None:
    looker = others()
    for number in range(5):
        looker.observe({looker._id: note(number), b"dead": note(3)}, 5.0 * number)
        assert looker.verdicts == []
    assert looker._old == []
    looker.observe({b"dead": note(3)}, 100.0)
    assert looker._old == [b"dead"]


def test_a_note_of_another_form_is_shown_all_the_same() -> None:
    looker = others()
    for number in (b"1", b"2"):
        looker.observe({b"other": number}, float(number))
    assert "another version" in looker.verdicts[0].figure
