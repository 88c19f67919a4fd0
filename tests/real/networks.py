"""Networks of one's own, in network namespaces: a machine, and hosts with public addresses.

The pipeline runs in `inside`. In `outside`, which is all that it can reach, an HAProxy with TLS
stands for relay, labeler, PLC directory and PDSes, and hands connections through sockets of the
file system to the simulator, which stays where the test runs. Names are resolved by an unbound in
`outside`, handles too. So the pipeline runs as it does on the internet: hosts of strangers only by
HTTPS, on public addresses. Nothing leaves the namespaces, which have no way out, and which are gone
with their last process.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.demo.processes import Simulation
from rsky_pipeline.demo.simulator.accounts import DOMAIN
from tests.real.servers import ENDS_WITH_US, Server, Servers, program, wait_until

# Of the hosts; they count as public (128.66.0.0/16 was never given to anybody).
PUBLIC_4, PUBLIC_6 = "128.66.7.1", "2a0e:aa00:7::1"
# Of the link between the namespaces.
OUTSIDE_4, INSIDE_4 = "128.66.8.1", "128.66.8.2"
OUTSIDE_6, INSIDE_6 = "2a0e:aa00:8::1", "2a0e:aa00:8::2"
DEAD_6 = "2a0e:aa00:9::1"  # nobody has it, and nobody says so
POOL_4 = "192.168.255"  # of the translator
TABLE = "rsky_real"
HOSTS = ("relay", "labeler", "plc", "pds")
PDS_URLS = (f"https://pds-a.{DOMAIN}", f"https://pds-b.{DOMAIN}")
SETTINGS = {
    "RELAY_HOSTS": f"wss://relay.{DOMAIN}", "LABELER_HOSTS": f"wss://labeler.{DOMAIN}",
    "PLC_URL": f"https://plc.{DOMAIN}", "HANDLE_RESOLVER_URL": "", "ALLOW_PRIVATE_HOSTS": "false",
    "EXPECTED_RATE_MIN": "0",  # the network falls silent at the end
}  # fmt: skip


class Namespace:
    """A network of its own, with its own /etc/resolv.conf."""

    def __init__(self, folder: Path) -> None:
        command = [*ENDS_WITH_US, "unshare", "--net", "--mount", "sleep", "infinity"]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.pid = self._holder.pid
        own = os.readlink("/proc/self/ns/mnt")
        wait_until(lambda: os.readlink(f"/proc/{self.pid}/ns/mnt") != own, "no namespace")
        self._resolver = folder / f"resolv-{self.pid}.conf"
        self._resolver.touch()
        self.run("mount", "--bind", str(self._resolver), "/etc/resolv.conf")
        self.run(program("ip"), "link", "set", "lo", "up")

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The words before a command that is to run here."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt")

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command to its end and return its output."""
        result = subprocess.run(
            [*self.wrapper, *command], capture_output=True, text=True, check=False, timeout=60
        )
        assert fails or result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
        return result.stdout

    def ip(self, *lines: str) -> None:
        """Run commands of `ip`."""
        for line in lines:
            self.run(program("ip"), *line.split())

    def set(self, **values: int) -> None:
        """Set kernel parameters of the network; `__` in a name stands for a dot."""
        for name, value in values.items():
            self.run("sysctl", "-qw", f"net.{name.replace('__', '.')}={value}")

    def resolve_by(self, address: str) -> None:
        """Have names resolved by a server; it is asked once more after two seconds."""
        self._resolver.write_text(f"nameserver {address}\noptions timeout:2 attempts:2\n")

    def count(self, name: str, match: str, *, drop: bool = False) -> None:
        """Count the packets that leave or pass through here and match, under a name."""
        nft = program("nft")
        if TABLE not in self.run(nft, "list", "tables"):
            self.run(nft, "add", "table", "inet", TABLE)
            for hook in ("output", "prerouting"):
                chain = f"{{ type filter hook {hook} priority -300; }}"
                self.run(nft, "add", "chain", "inet", TABLE, hook, chain)
        if name not in self.run(nft, "list", "counters"):
            self.run(nft, "add", "counter", "inet", TABLE, name)
        for hook in ("output", "prerouting"):
            rule = [*match.split(), "counter", "name", name, *(["drop"] if drop else [])]
            self.run(nft, "add", "rule", "inet", TABLE, hook, *rule)

    def packets(self, name: str) -> int:
        """Return how many packets were counted."""
        words = self.run(program("nft"), "list", "counter", "inet", TABLE, name).split()
        return int(words[words.index("packets") + 1])

    def end(self) -> None:
        """Give it up; it is gone with the last process in it."""
        self._holder.kill()
        self._holder.wait()


@dataclass(slots=True)
class Inhabitant(Server):
    """A server in a namespace, which listens on a TCP port of an address there."""

    namespace: Namespace
    address: str

    def accepts(self) -> bool:
        listening = self.namespace.run("ss", "-Htln", f"sport = :{self.port}")
        return self.address in listening


class Network:
    """Two namespaces and what runs in `outside`."""

    def __init__(self, real: Servers, *, families: str = "46") -> None:
        self._real = real
        self._names = real.directory("names")
        self._zone: list[str] = []
        self.outside, self.inside = (self._namespace() for _ in range(2))
        self.outside.ip(
            f"link add link0 type veth peer name link0 netns {self.inside.pid}",
            f"addr add {PUBLIC_4}/32 dev lo", f"addr add {PUBLIC_6}/128 dev lo nodad",
            f"addr add {OUTSIDE_4}/24 dev link0", f"addr add {OUTSIDE_6}/64 dev link0 nodad",
            "link set link0 up",
        )  # fmt: skip
        self.inside.ip("link set link0 up")
        if "4" in families:
            self.inside.ip(
                f"addr add {INSIDE_4}/24 dev link0", f"route add default via {OUTSIDE_4}"
            )
        if "6" in families:
            self.inside.ip(
                f"addr add {INSIDE_6}/64 dev link0 nodad",
                f"-6 route add default via {OUTSIDE_6}",
            )
        self.inside.resolve_by(OUTSIDE_4 if "4" in families else OUTSIDE_6)
        self.outside.resolve_by(OUTSIDE_4)

    def _namespace(self) -> Namespace:
        found = Namespace(self._names)
        self._real.at_end(found.end)
        return found

    def name(self, name: str, *records: str) -> None:
        """Give a name records such as `A 1.2.3.4`, before `names_are_served`."""
        self._zone += [f"{name}. 1 {record}" for record in records]

    def names_are_served(self, *lines: str) -> "Names":
        """Start the DNS, with these lines in its configuration."""
        zone = self._names / "zone"
        head = [". 1 SOA ns. host. 1 60 60 60 1", ". 1 NS ns.", f"ns. 1 A {OUTSIDE_4}"]
        zone.write_text("\n".join([*head, *self._zone]) + "\n")
        admin = self._names / "admin.sock"
        text = [
            "server:", f"  interface: {OUTSIDE_4}", f"  interface: {OUTSIDE_6}",
            "  access-control: 0.0.0.0/0 allow", "  access-control: ::/0 allow",
            '  chroot: ""', '  username: ""', '  pidfile: ""', "  use-syslog: no",
            f"  directory: {self._names}", "  rrset-roundrobin: yes",
            *(lines or ('  module-config: "iterator"',)),
            "remote-control:", "  control-enable: yes", f"  control-interface: {admin}",
            "auth-zone:", '  name: "."', f"  zonefile: {zone}", "  for-downstream: no",
            "  for-upstream: yes",
        ]  # fmt: skip
        (self._names / "unbound.conf").write_text("\n".join(text) + "\n")
        # Debian's AppArmor profile goes by the path, and lets it read no configuration of ours.
        copy = str(shutil.copy(program("unbound"), self._names))
        command = [copy, "-d", "-c", str(self._names / "unbound.conf")]
        self.server(command, self._names, 53, OUTSIDE_4)
        return Names(admin)

    def server(self, command: Sequence[str], folder: Path, port: int, address: str) -> Inhabitant:
        """Start a server in `outside`."""
        launch = self._real.launch([*self.outside.wrapper, *command], folder)
        return self._real.running(Inhabitant(port, launch, self.outside, address))

    def nat64(self, prefix: str) -> Server:
        """Translate IPv6 addresses with a prefix to the IPv4 addresses in them."""
        folder = self._real.directory("tayga")
        (folder / "tayga.conf").write_text(
            f"tun-device nat64\nipv4-addr {POOL_4}.1\nipv6-addr {OUTSIDE_6}64\nprefix {prefix}\n"
            f"dynamic-pool {POOL_4}.0/24\ndata-dir {folder}\n"
        )
        command = [program("tayga"), "-c", str(folder / "tayga.conf")]
        self.outside.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        self.outside.run(*command, "--mktun")
        self.outside.ip(
            "link set nat64 up", f"route add {POOL_4}.0/24 dev nat64",
            f"-6 route add {prefix} dev nat64",
        )  # fmt: skip
        launch = self._real.launch([*self.outside.wrapper, *command, "-d"], folder)
        server = Server(0, launch)
        self._real.at_end(server.end)
        return server

    def hosts(self, simulation: Simulation, certificates: Path) -> None:
        """Have the hosts of a simulation answer in `outside`, by HTTPS."""
        folder = self._real.directory("hosts")
        ports = {host: simulation.urls[host].rpartition(":")[2] for host in HOSTS}
        defaults = [
            "defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1h",
            "  timeout server 1h",
        ]  # fmt: skip
        near, far = list(defaults), list(defaults)
        far += [
            "frontend in", f"  bind {PUBLIC_4}:443 ssl crt {certificates}",
            f"  bind [{PUBLIC_6}]:443 ssl crt {certificates}", "  default_backend pds",
        ]  # fmt: skip
        far += [f"  use_backend {host} if {{ ssl_fc_sni {host}.{DOMAIN} }}" for host in HOSTS[:-1]]
        for host, port in ports.items():
            door = folder / f"{host}.sock"
            near += [f"listen {host}", f"  bind unix@{door}", f"  server s 127.0.0.1:{port}"]
            if host == "pds":  # so that each request looks for its address anew
                near += ["  mode http", "  option httpclose"]
            far += [f"backend {host}", f"  server s unix@{door}"]
        for name, lines in (("near", near), ("far", far)):
            (folder / f"{name}.cfg").write_text("\n".join(lines) + "\n")
        haproxy = program("haproxy")
        process = Server(
            0, self._real.launch([haproxy, "-db", "-f", str(folder / "near.cfg")], folder)
        )
        self._real.at_end(process.end)
        wait_until(lambda: all((folder / f"{host}.sock").exists() for host in HOSTS), "no sockets")
        self.server([haproxy, "-db", "-f", str(folder / "far.cfg")], folder, 443, PUBLIC_4)


@dataclass(frozen=True, slots=True)
class Names:
    """The control of a DNS server."""

    admin: Path

    def change(self, name: str, records: Iterable[str]) -> None:
        """Answer with other records for a name."""
        self._command(f"local_data_remove {name}")
        for record in records:
            self._command(f"local_data {name} 0 {record}")

    def _command(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.admin))
            connection.sendall(f"UBCT1 {line}\n".encode())
            answer = connection.recv(4096)
        assert answer.startswith(b"ok"), answer


def server_file(real: Servers) -> tuple[Path, Path]:
    """Return a server's certificate with its key, and the authority that it is from."""
    files = real.certificates(f"DNS:*.{DOMAIN}")
    both = files.server.with_name("both.pem")
    with both.open("wb") as target:
        for part in (files.server, files.key):
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return both, files.authority
