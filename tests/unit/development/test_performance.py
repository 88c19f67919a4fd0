"""The page of figures: arithmetic of the last run."""

from rsky_pipeline.development.performance import sizing_markdown


def test_cores_divide_by_the_cost_until_the_one_thread_of_valkey_is_busy() -> None:
    rows = [
        (None, "CAR bytes to firehose_backfill, workers: 1", 9.0),
        ("CAR bytes to firehose_backfill, workers: 1", "  processor time, backfiller", 12.0),
        ("CAR bytes to firehose_backfill, workers: 1", "  processor time, Valkey", 8.0),
        (None, "CAR bytes to firehose_backfill, workers: 2", 9.0),
        ("CAR bytes to firehose_backfill, workers: 2", "  processor time, Valkey", 99.0),
    ]
    figures = [{"of": of, "name": name, "value": value} for of, name, value in rows]
    line = sizing_markdown({"figures": figures}).splitlines()[-1]
    assert line == (
        "| records of repos to a stream | 20 us | 100,000/s | 125,000/s (one Valkey) "
        "| 125,000/s (one Valkey) |"
    )
