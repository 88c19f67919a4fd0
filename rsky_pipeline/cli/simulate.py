"""`rsky-pipeline simulate`: serve a simulated network on loopback."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_json, say

if TYPE_CHECKING:
    from rsky_pipeline.demo.simulator.faults import Hostility
    from rsky_pipeline.demo.simulator.hosts import Urls
    from rsky_pipeline.demo.simulator.network import Network
    from rsky_pipeline.demo.simulator.world import World

FIXED_START = 1_767_225_600_000_000  # 2026-01-01, microseconds
FIXED_STEP = 1_000


@operator_command(name="simulate", configuration=False)
@click.option("--seed", default=1, show_default=True, help="Everything but time follows from it.")
@click.option("--accounts", default=200, show_default=True, type=click.IntRange(2, 100_000))
@click.option("--history", default=30, show_default=True, type=click.IntRange(0),
              help="Records that an account with a history has on average.")  # fmt: skip
@click.option("--rate", default=1_000.0, show_default=True, type=click.FloatRange(0),
              help="Events a second; 0 is as fast as possible.")  # fmt: skip
@click.option("--events", type=click.IntRange(0), help="Stop publishing after this many.")
@click.option("--prepare", default=0, metavar="N", type=click.IntRange(0),
              help="Make N events before serving, so that publishing costs little.")  # fmt: skip
@click.option("--calm", is_flag=True, help="Accounts keep their hosting status and no repo is "
              "announced anew (#sync), so that none must be fetched again.")  # fmt: skip
@click.option("--hold", is_flag=True, help="Publish nothing before GET /simulator/release.")
@click.option(
    "--fixed-clock",
    is_flag=True,
    help="Simulated time does not depend on the clock: same seed, same bytes.",
)
@click.option("--replay", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Serve recorded frames, with dids.json, handles.json, listRepos.json, cars/ "
              "and labels.frames if they lie beside FILE.")  # fmt: skip
@click.option("--keep-events", default=0, metavar="N", type=click.IntRange(0),
              help="Size of the relay's replay window; 0 keeps everything.")  # fmt: skip
@click.option("--buffer-events", default=16_384, show_default=True, type=click.IntRange(0),
              help="Cut live subscribers off that are further behind; 0 never does.")  # fmt: skip
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65_532),
    help="The relay's; PDS, PLC directory and labeler have the next three. 0 picks free ones.",
)
@click.option("--pds-url", "pds_urls", multiple=True, metavar="URL",
              help="The PDS that DID documents name, where a proxy stands before this one; "
              "accounts are spread over several.")  # fmt: skip
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=RATE",
    help="Have the relay do wrong with this share of events; may be repeated. Names: drop, repeat, "
    "reorder, corrupt, truncate, jump, leap, forge, smuggle, hide, too_big, sync, future, rotate, "
    "rotate_quietly.",
)
def command(
    run: Invocation, seed: int, accounts: int, history: int, rate: float, events: int | None,
    prepare: int, calm: bool, hold: bool, fixed_clock: bool, replay: Path | None, keep_events: int,
    buffer_events: int, port: int, pds_urls: tuple[str, ...], faults: tuple[str, ...],
) -> None:  # fmt: skip
    """Serve a relay, a PDS, a PLC directory and a labeler with real, signed repos on loopback.

    Prints the settings with which `rsky-pipeline run` follows this network, then publishes until
    it is interrupted. GET /simulator/status, /simulator/stop and /simulator/truth at the relay, and
    /simulator/silence?seconds=N, which makes it silent with the socket open.

    With --fault the relay is hostile: GET /simulator/faults?NAME=RATE changes and counts its
    faults. Before it stops, it sends an honest event of every account once more.
    """
    from rsky_pipeline.demo.simulator.network import Network
    from rsky_pipeline.demo.simulator.recording import RecordingError, load_recording
    from rsky_pipeline.demo.simulator.subscription import StreamRules

    rules = StreamRules(buffer_events, keep_events)
    try:
        if replay is not None:
            network = Network(load_recording(replay), rules)
        else:
            hostility = _hostility(seed, faults)
            world = _world(seed, accounts, history, fixed_clock, calm)
            world.deletes_accounts = hostility is None
            if pds_urls:
                world.spread(pds_urls)
            network = Network(world, rules, hostility)
    except RecordingError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    network.prepare(prepare)
    if hold:
        network.hold()
    _serve(run, network, port, rate, events)


def settings(urls: "Urls") -> dict[str, str]:
    """Return the settings of a pipeline that follows a network; text as in the environment."""
    return {
        "relay_hosts": urls.relay.replace("http:", "ws:"),
        "labeler_hosts": urls.labeler.replace("http:", "ws:"),
        "plc_url": urls.plc,
        "handle_resolver_url": urls.pds,
        "allow_private_hosts": "true",
        "initial_cursor": "oldest",
    }


def _world(seed: int, accounts: int, history: int, fixed_clock: bool, calm: bool) -> "World":
    from rsky_pipeline.demo.simulator.clock import Clock, stepping_clock
    from rsky_pipeline.demo.simulator.world import World

    clock = stepping_clock(FIXED_START, FIXED_STEP) if fixed_clock else Clock()
    world = World(seed, accounts, clock, calm=calm)
    if history:
        world.add_history(history)
    return world


def _hostility(seed: int, faults: tuple[str, ...]) -> "Hostility | None":
    from rsky_pipeline.demo.simulator.faults import Hostility, UnknownFaultError

    if not faults:
        return None
    hostility = Hostility(seed)
    try:
        for text in faults:
            name, _, rate = text.partition("=")
            hostility.set_rates({name: float(rate)})
    except UnknownFaultError as error:
        raise CommandError(f"--fault {error}", ExitCode.USAGE) from error
    except ValueError as error:
        raise CommandError(
            f"--fault {text}: give a rate, as in drop=0.01", ExitCode.USAGE
        ) from error
    return hostility


def _serve(run: Invocation, network: "Network", port: int, rate: float, events: int | None) -> None:
    import trio

    from rsky_pipeline.demo.simulator.network import Ports

    async def main() -> str:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                try:
                    urls = await nursery.start(network.serve, Ports(port))
                except OSError as error:
                    return f"cannot listen on the ports from {port}: {error.strerror or error}"
                _announce(run, urls)
                nursery.start_soon(network.publish, rate, events)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break
        return ""

    try:
        problem = trio.run(main)
        if problem:
            raise CommandError(problem, ExitCode.UNAVAILABLE)
        say(f"published {network.events.log.published} events")
    finally:
        network.close()


def _announce(run: Invocation, urls: "Urls") -> None:
    environment = {f"RSKY_PIPELINE_{name.upper()}": text for name, text in settings(urls).items()}
    if run.as_json:  # one line, which a program reads while this one goes on
        hosts = {"relay": urls.relay, "pds": urls.pds, "plc": urls.plc, "labeler": urls.labeler}
        print_json({"urls": hosts, "environment": environment}, indent=None)
        return
    for name, value in environment.items():
        line(f"export {name}={value}")
    line("# For the units, write these lines without `export` into /etc/rsky-pipeline/environment.")
