"""The whole pipeline on networks as operators have them, each in namespaces of its own."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest

from rsky_pipeline.demo.simulator.accounts import DOMAIN
from tests.pipelines import Place, Running
from tests.real.conftest import Tally
from tests.real.following import WAIT_SECONDS, following, wait_for_records
from tests.real.networks import (
    DEAD_6,
    OUTSIDE_4,
    PDS_URLS,
    PUBLIC_4,
    PUBLIC_6,
    SETTINGS,
    Names,
    Network,
    server_file,
)
from tests.real.servers import Servers, program

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
STORES = ("valkey", "postgres")
EVERY = f"*.{DOMAIN}"
OWN_PREFIX = "2a0e:aa00:64::/96"
PRIVATE_4 = "{ 127.0.0.0/8, 10.0.0.0/8, 169.254.0.0/16, 192.168.0.0/16 }"
PRIVATE_6 = f"{{ ::1, ::ffff:0.0.0.0/96, fc00::/7, 64:ff9b::/96, {OWN_PREFIX} }}"
# What a name that is bound to another address at each look leads to. Every other time it is honest.
REBOUND = (
    ("A 127.0.0.1",), ("A 10.66.0.1", f"A {PUBLIC_4}"), ("AAAA ::1",), ("A 169.254.169.254",),
    ("AAAA ::ffff:127.0.0.1",), ("AAAA fd00::1",), ("AAAA 64:ff9b::7f00:1",),
    ("AAAA 2a0e:aa00:64::a42:1", "A 192.168.1.1"),
)  # fmt: skip
READ = (
    sys.executable, "-c",
    "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=2).read().decode())",
)  # fmt: skip


@contextmanager
def in_network(network: Network, real: Servers, tally: Tally, **changes: str) -> Iterator[Running]:
    """Run the pipeline inside a network whose names are served."""
    both, authority = server_file(real)
    place = Place(
        pipeline=("env", f"SSL_CERT_FILE={authority}", *network.inside.wrapper),
        prepare=lambda simulation: network.hosts(simulation, both),
    )
    options = [f"--pds-url={url}" for url in PDS_URLS]
    with following(
        tally, SETTINGS | changes, options=options, stores=STORES, place=place
    ) as running:
        yield running


@pytest.mark.parametrize("prefix", ["64:ff9b::/96", OWN_PREFIX], ids=["well_known", "own"])
def test_ipv6_only_behind_nat64(prefix: str, real: Servers, tally: Tally) -> None:
    network = Network(real, families="6")
    network.name(EVERY, f"A {PUBLIC_4}")
    network.name("ipv4only.arpa", "A 192.0.0.170", "A 192.0.0.171")
    network.names_are_served('  module-config: "dns64 iterator"', f"  dns64-prefix: {prefix}")
    translator = network.nat64(prefix)
    network.inside.count("translated", f"ip6 daddr {prefix} tcp dport 443")
    with in_network(network, real, tally) as running:
        translator.kill()
        tally.kills += 1
        translator.process = translator.launch()
        wait_for_records(running)
    assert network.inside.packets("translated") > 0


def test_ipv6_only(real: Servers, tally: Tally) -> None:
    network = Network(real, families="6")
    network.name(EVERY, f"AAAA {PUBLIC_6}")
    network.names_are_served()
    with in_network(network, real, tally) as running:
        wait_for_records(running)


def test_ipv6_leads_nowhere(real: Servers, tally: Tally) -> None:
    network = Network(real)
    network.name(EVERY, f"A {PUBLIC_4}", f"AAAA {DEAD_6}")
    network.names_are_served()
    network.outside.count("vanished", f"ip6 daddr {DEAD_6}", drop=True)
    with in_network(network, real, tally) as running:
        wait_for_records(running)
    assert network.outside.packets("vanished") > 0, "nobody tried the address that is dead"


def test_a_name_is_bound_to_private_addresses(real: Servers, tally: Tally) -> None:
    network = Network(real)
    network.name(EVERY, f"A {PUBLIC_4}")
    network.name("ipv4only.arpa", "A 192.0.0.170", "AAAA 2a0e:aa00:64::c000:aa")
    names = network.names_are_served('  module-config: "iterator"')
    network.inside.count("private", f"ip daddr {PRIVATE_4} tcp dport 443")
    network.inside.count("private", f"ip6 daddr {PRIVATE_6} tcp dport 443")
    name = PDS_URLS[1].removeprefix("https://")
    with rebinding(names, name) as settle, in_network(network, real, tally) as running:
        wait_for_records(running, 2_000)
        running.wait_for(lambda: misled(running, network) > 5, WAIT_SECONDS)
        settle()
    assert network.inside.packets("private") == 0
    network.inside.run(*READ, "https://10.66.0.1", fails=True)
    assert network.inside.packets("private") > 0, "the counter does not count"


def misled(running: Running, network: Network) -> float:
    """Return how often the backfiller was led to an address that it must not connect to."""
    found = re.search(
        r"backfiller-1 .*Metrics initialized .*port=([0-9]+)", running.log.read_text()
    )
    assert found is not None
    page = network.inside.run(*READ, f"http://127.0.0.1:{found[1]}/metrics")
    value = re.search(r'^backfiller_failures_total{reason="misled"} (.+)$', page, re.MULTILINE)
    assert value is not None
    return float(value[1])


@contextmanager
def rebinding(names: Names, name: str) -> Iterator[Callable[[], None]]:
    """Change the addresses of a name all the time until the function is called that is yielded."""
    done = threading.Event()

    def run() -> None:
        for records in cycle(REBOUND):
            for each in (records, (f"A {PUBLIC_4}",)):
                names.change(name, each)
                if done.wait(0.5):
                    names.change(name, (f"A {PUBLIC_4}",))
                    return

    def settle() -> None:
        done.set()
        thread.join()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield settle
    finally:
        settle()


def test_through_an_http_proxy(real: Servers, tally: Tally) -> None:
    network = Network(real)
    network.name(EVERY, f"A {PUBLIC_4}")
    network.names_are_served()
    folder = real.directory("tinyproxy")
    lines = [
        "Port 3128", f"Listen {OUTSIDE_4}", "Timeout 600", "MaxClients 500", "ConnectPort 443",
        "BasicAuth user pass", f'LogFile "{folder}/proxy.log"', "LogLevel Connect",
    ]  # fmt: skip
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    command = [program("tinyproxy"), "-d", "-c", str(folder / "tinyproxy.conf")]
    proxy = network.server(command, folder, 3128, OUTSIDE_4)
    network.inside.resolve_by("127.0.0.1")  # nobody answers there
    network.inside.count("elsewhere", f"ip daddr != {OUTSIDE_4} oif link0", drop=True)
    network.inside.ip("-6 addr flush dev link0")
    changes = {
        "HTTP_PROXY": f"http://user:pass@{OUTSIDE_4}:3128",
        "HANDLE_RESOLVER_URL": PDS_URLS[0],
    }
    with in_network(network, real, tally, **changes) as running:
        proxy.kill()
        tally.kills += 1
        proxy.start_again()
        wait_for_records(running)
