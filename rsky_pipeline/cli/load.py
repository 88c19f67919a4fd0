"""`rsky-pipeline load`: index CAR files straight into PostgreSQL."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, duration, line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.load.run import BulkLoad


@operator_command(name="load")
@click.argument("cars", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--jobs", type=click.IntRange(1, 256), metavar="N",
              help="Processes. Default: one more than there are cores.")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Also load files that failed in an earlier run.")
@click.option("--no-verify-signatures", is_flag=True,
              help="Trust that the accounts signed the files.")  # fmt: skip
@click.option("--max-car-mb", type=click.IntRange(1, 65_536), default=1_024, show_default=True,
              help="A larger file fails.")  # fmt: skip
@click.option("--memory-mb", type=click.IntRange(1, 65_536), default=256, show_default=True,
              help="For the blocks of one repo in each process; larger ones use a temporary file "
                   "(in TMPDIR).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read and verify everything, and write nothing.")
def command(
    run: Invocation, cars: Path, jobs: int | None, retry_failed: bool, no_verify_signatures: bool,
    max_car_mb: int, memory_mb: int, dry_run: bool,
) -> int:  # fmt: skip
    """Index all CAR files (*.car) below the directory CARS straight into PostgreSQL.

    The rows are those that fetching the same repos would give; nobody is notified. Stop it at any
    moment and repeat it: it continues where it was. Repos already stored at the file's rev or a
    later one are skipped. Exit codes: 0 all files are loaded or current, 1 some failed (the
    summary says why), 2 wrong option, 69 PostgreSQL cannot be used.
    """
    from rsky_pipeline.database.errors import DatabaseError, DatabaseUnavailableError
    from rsky_pipeline.operations.load.pool import LoadStoppedError
    from rsky_pipeline.operations.load.run import BulkLoad
    from rsky_pipeline.operations.load.worker import LoadOptions

    options = LoadOptions(
        not no_verify_signatures, dry_run, max_car_mb * 1024 * 1024, memory_mb * 1024 * 1024
    )
    load = BulkLoad(cars, retry_failed)
    try:
        load.run(run.settings, options, jobs or (os.cpu_count() or 1) + 1, _Watcher())
    except DatabaseUnavailableError as error:
        raise CommandError(f"PostgreSQL cannot be used: {error}", ExitCode.UNAVAILABLE) from error
    except (DatabaseError, OSError) as error:
        hint = "; `rsky-pipeline db check` says more" if isinstance(error, DatabaseError) else ""
        raise CommandError(f"{error}{hint}", ExitCode.FAILED) from error
    except LoadStoppedError as error:
        raise CommandError(f"{error}; repeat the command to go on", ExitCode.UNAVAILABLE) from error
    document = load.summary.document(load.skipped) | {"dry_run": dry_run}
    run.answer(document, lambda: _show(document, load))
    failed = document["files"]["failed"] or document["files"]["skipped_failed"]
    return ExitCode.FAILED if failed else ExitCode.OK


class _Watcher:
    """Says every two seconds how far the load is."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._began = time.monotonic()
        self._bytes_before: int | None = None

    def __call__(self, load: "BulkLoad") -> None:
        if self._bytes_before is None:
            self._bytes_before = load.done_bytes
        elapsed = max(time.monotonic() - self._began, 0.001)
        rate = (load.done_bytes - self._bytes_before) / elapsed
        left = (load.found_bytes - load.done_bytes) / rate if rate > 0 else None
        done = sum(load.summary.files.values()) + sum(load.skipped.values())
        self._progress(
            f"{done:,} of {load.found:,} files, {load.summary.records:,} records, "
            f"{load.summary.records / elapsed:,.0f} records/s, about {duration(left)} left"
        )


def _show(document: dict[str, Any], load: "BulkLoad") -> None:
    files = document["files"]
    verb = "would be loaded" if document["dry_run"] else "loaded"
    rate = document["records_per_second"]
    line(
        f"{files['loaded']:,} files {verb}, {files['current']:,} current already, "
        f"{files['skipped']:,} finished before, {files['failed']:,} failed"
    )
    line(
        f"{document['records']:,} records in {duration(document['seconds'])}"
        + (f" ({rate:,} records/s)" if rate else "")
        + (f", {document['rows_deleted']:,} rows deleted" if document["rows_deleted"] else "")
    )
    for title, counts in (
        ("FAILED FILES", document["failed_by_reason"]),
        ("REFUSED RECORDS", document["records_refused_by_reason"]),
    ):
        if counts:
            line()
            print_table((title, "COUNT"), [(name, f"{n:,}") for name, n in counts.items()])
    for example in load.summary.examples:
        say(f"{example.path}: {example.reason}: {example.error}")
    if files["skipped_failed"]:
        say(f"{files['skipped_failed']:,} files failed in an earlier run; --retry-failed tries "
            "them again")  # fmt: skip
