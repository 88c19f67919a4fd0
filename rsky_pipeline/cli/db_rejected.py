"""`rsky-pipeline db rejected`: list records that cannot be indexed."""

from dataclasses import asdict
from typing import Any

import click

from rsky_pipeline.cli.database import opened_database
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import print_json, print_table


@click.command()
@click.option("--did", metavar="DID", help="Of one account.")
@click.option("--uri", metavar="URI", help="One record.")
@click.option("--collection", metavar="NSID", help="Of one collection.")
@click.option("--reason", metavar="CODE", help="For one reason, such as too_long.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(0, 100_000),
              help="Records to list, the newest first; all are counted.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def rejected(
    did: str | None, uri: str | None, collection: str | None, reason: str | None, limit: int,
    as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Count by collection and reason, and list, records that were refused and why.

    A record of which a newer state was indexed, or that was deleted, is not listed any more.
    """
    from rsky_pipeline.indexer.core.rejected import (
        RejectionFilter,
        count_rejections,
        list_rejections,
    )

    wanted = RejectionFilter(did, uri, collection, reason)
    with opened_database(parameters, "rejected") as (_, database):
        counts = count_rejections(database, wanted)
        listed = list_rejections(database, wanted, limit)
    if as_json:
        print_json({
            "total": sum(counts.values()),
            "counts": [
                {"collection": nsid, "reason": why, "records": count}
                for (nsid, why), count in counts.items()
            ],
            "records": [
                asdict(item.rejection) | {"at": item.at, "older_version_stands": item.older}
                for item in listed
            ],
        })  # fmt: skip
        return
    if not counts:
        click.echo("no rejected records")
        return
    print_table(("COLLECTION", "REASON", "RECORDS"), [(*key, n) for key, n in counts.items()])
    for item in listed:
        stands = "; an older version stands" if item.older else ""
        click.echo(f"{item.at}  {item.rejection.uri}")
        click.echo(f"  {item.rejection.message}{stands}")
