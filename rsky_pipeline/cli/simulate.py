"""`rsky-pipeline simulate`: serve a simulated network on loopback."""

import json

import click


@click.command()
@click.option("--seed", default=1, show_default=True, help="Everything but time follows from it.")
@click.option("--accounts", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--history", default=20, show_default=True, help="Records an account has from before."
)
@click.option("--rate", default=100.0, show_default=True, help="Events a second.")
@click.option("--events", type=click.IntRange(1), help="Stop publishing after this many.")
@click.option("--port", default=0, show_default=True, help="0 picks a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings as one JSON line.")
def command(
    seed: int, accounts: int, history: int, rate: float, events: int | None, port: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Serve a relay, a PDS and a PLC directory with real, signed repos on loopback.

    Prints the settings with which `rsky-pipeline run` follows this network.
    """
    import trio

    from rsky_pipeline.simulator.service import Network

    async def main() -> None:
        network = Network(seed, accounts, history)
        async with trio.open_nursery() as nursery:
            url = await nursery.start(network.serve, port)
            _announce(url, as_json)
            await network.publish(rate, events)

    try:
        trio.run(main)
    except* KeyboardInterrupt:
        click.echo("stopped", err=True)


def _announce(url: str, as_json: bool) -> None:
    settings = {
        "RSKY_PIPELINE_RELAY_HOSTS": url,
        "RSKY_PIPELINE_PLC_URL": url,
        "RSKY_PIPELINE_ALLOW_PRIVATE_HOSTS": "true",
        "RSKY_PIPELINE_INITIAL_CURSOR": "oldest",
    }
    if as_json:
        click.echo(json.dumps({"url": url, "environment": settings}))
        return
    for name, value in settings.items():
        click.echo(f"export {name}={value}")
