"""The steps of the schema are numbered without gap or repetition."""

from rsky_pipeline.database.schema.migrate import migrations


def test_each_step_has_a_number_of_its_own() -> None:
    numbers = [step.version for step in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
