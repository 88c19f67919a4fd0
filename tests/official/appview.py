"""An unmodified AppView over a database, by the programs and settings of docs/appview.md."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.official.network import (
    ADMIN,
    START_SECONDS,
    Network,
    Process,
    XrpcError,
    free_port,
    wait_until,
)

PAGE = Path(__file__).parents[2] / "docs" / "appview.md"
SIGNING_KEY = "44" * 32
BSYNC_KEY = "official-bsync-key"
_PROGRAM = re.compile(
    r"^```(?:js|sh)\n(?://|#) (\S+\.(?:mjs|env))\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


def programs() -> dict[str, str]:
    """Return the files of the page, by name."""
    return {match[1]: match[2] for match in _PROGRAM.finditer(PAGE.read_text())}


@dataclass(slots=True)
class AppView:
    """An AppView and its data plane."""

    network: Network
    url: str
    did: str
    processes: list[Process]

    @classmethod
    def start(
        cls, network: Network, database_url: str, schema: str, bsync: str = "http://127.0.0.1:9"
    ) -> "AppView":
        """Start both over a database; what the page does not say is where its servers are here."""
        install(network)
        plane, port = free_port(), free_port()
        common = {"BSKY_DID_PLC_URL": network.plc}
        dataplane = _spawn(network, "dataplane", common | {
            "DB_POSTGRES_URL": database_url, "DB_POSTGRES_SCHEMA": schema,
            "DATAPLANE_PORT": str(plane),
        })  # fmt: skip
        appview = _spawn(network, "appview", common | {
            "BSKY_PORT": str(port), "BSKY_SERVICE_SIGNING_KEY": SIGNING_KEY,
            "BSKY_DATAPLANE_URLS": f"http://localhost:{plane}", "BSKY_BSYNC_URL": bsync,
            "BSKY_BSYNC_API_KEY": BSYNC_KEY, "BSKY_ADMIN_PASSWORDS": ADMIN,
            "MOD_SERVICE_DID": network.labeler, "BSKY_DISABLE_SSRF_PROTECTION": "true",
            "BSKY_LABELS_FROM_ISSUER_DIDS": network.labeler,
        })  # fmt: skip
        url = f"http://localhost:{port}"
        did = re.search(r"^BSKY_SERVER_DID=(.+)$", programs()["appview.env"], re.MULTILINE)
        assert did is not None
        found = cls(network, url, did[1], [dataplane, appview])
        wait_until(found.is_up, lambda: str(appview.failure("is not up")), START_SECONDS)
        return found

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self.network.http.get(f"{self.url}/xrpc/_health").is_success
        except httpx.TransportError:
            return False

    def ask(self, method: str, query: dict[str, Any], token: str | None = None) -> Any:
        """Return the answer to a question, or the name of the error."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            return self.network.call(self.url, method, headers=headers, get=True, **query)
        except XrpcError as error:
            return {"error": error.name, "status": error.status}

    def end(self) -> None:
        """End both."""
        for process in reversed(self.processes):
            self.network.end(process)


def start_bsync(network: Network, schema: str, **changes: str) -> Process:
    """Start a bsync whose tables are in a schema of the network's database."""
    install(network)
    port = changes.setdefault("BSYNC_PORT", str(free_port()))
    process = _spawn(network, "bsync", {
        "BSYNC_DB_POSTGRES_URL": network.database_url, "BSYNC_DB_POSTGRES_SCHEMA": schema,
        "BSYNC_API_KEYS": BSYNC_KEY, "BSYNC_LONG_POLL_TIMEOUT_MS": "2000", **changes,
    })  # fmt: skip
    process.ready = {"url": f"http://127.0.0.1:{port}"}

    def is_up() -> bool:
        try:
            return network.http.get(f"{process.ready['url']}/_health").is_success
        except httpx.TransportError:
            return False

    wait_until(is_up, lambda: str(process.failure("is not up")), START_SECONDS)
    return process


def install(network: Network) -> None:
    """Write the page's files beside the packages."""
    for name, text in programs().items():
        (network.installation.folder / name).write_text(text)


def _spawn(network: Network, name: str, environ: dict[str, str]) -> Process:
    return network.spawn(name, f"{name}.mjs", [], environ, options=[f"--env-file={name}.env"])
