"""What happens to hosts: accounts of did:web, a PDS that loses its sequencer, or limits rates."""

import contextlib
import json
import secrets
import threading
import time
from base64 import urlsafe_b64encode
from collections import Counter
from pathlib import Path

import httpx

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.demo.simulator.accounts import SimulatedAccount
from rsky_pipeline.demo.simulator.repo import SimulatedRepo
from tests.official.network import Network, Pds
from tests.official.people import People, Person

SERVER_DID = "did:web:localhost"  # of both PDSes
CROWD_SECONDS = 0.5  # between its requests
_CREATE = "com.atproto.server.createAccount"


def join_with_own_did(people: People, pds: Pds) -> Person:
    """Make an account of somebody who brings a did:web, as its PDS wants it.

    The document first has a key with which its owner proves to be that, then the key of the PDS.
    """
    network, number = people.network, len(people.everybody)
    did = network.new_web_did()
    key = PrivateKey.from_seed("k256", did.encode())
    network.change_document(did, "", keys={"atproto": f"did:key:{key.multibase}"}, pds=pds.url)
    people.turn(pds)
    body = {
        "did": did, "handle": f"person{number}{pds.domain}",
        "email": f"person{number}@example.org", "password": f"password of {number}",
    }  # fmt: skip
    headers = {"authorization": f"Bearer {_token(did, key)}"}
    made = network.call(pds.url, _CREATE, json=body, headers=headers)
    account = SimulatedAccount(number, did, body["handle"], key, SimulatedRepo(did, key))
    person = Person(account, pds, body["password"], made["accessJwt"])
    wanted = people.call(person, "com.atproto.identity.getRecommendedDidCredentials", get=True)
    network.change_document(did, "", keys=wanted["verificationMethods"], handle=body["handle"])
    people.call(person, "com.atproto.server.activateAccount")
    people.everybody.append(person)
    people.subjects.dids.append(did)
    people.counts["account of did:web"] += 1
    return person


def _token(did: str, key: PrivateKey) -> str:
    """Return a service token (https://atproto.com/specs/xrpc#inter-service-authentication-jwt)."""
    now = int(time.time())
    claims = {
        "iss": did, "aud": SERVER_DID, "lxm": _CREATE, "iat": now, "exp": now + 60,
        "jti": secrets.token_hex(16),
    }  # fmt: skip
    parts = [
        _base64(json.dumps(each).encode()) for each in ({"typ": "JWT", "alg": "ES256K"}, claims)
    ]
    signed = ".".join(parts)
    return f"{signed}.{_base64(key.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def lose_sequencer(network: Network, pds: Pds) -> int:
    """Have a PDS begin to number its events anew; return its last number."""
    last = pds.last_seq()
    assert pds.process is not None
    network.end(pds.process)
    for file in pds.folder.glob("sequencer.sqlite*"):
        file.unlink()
    network.start_pds(pds)
    return last


def limit_rates(network: Network) -> Path:
    """Start the PDSes with their rate limits on; return the file in which they note answers."""
    log = network.folder / "limits.log"
    for pds in network.pdses:
        network.restart_pds(pds, {"LIMITS_LOG": str(log)}, rateLimitsEnabled=True)
    return log


def lift_limits(network: Network) -> None:
    """Start the PDSes without limits."""
    for pds in network.pdses:
        network.restart_pds(pds)


class Crowd:
    """Others who ask the PDSes from the same address, and use up most of what is allowed.

    By ourselves we reach no limit, since its headers tell how much is left.
    """

    def __init__(self, network: Network, did: str) -> None:
        self.answers: Counter[str] = Counter()  # as their PDS notes them
        self._network = network
        self._did = did
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _ask(self) -> None:
        questions = (("com.atproto.sync.getRepo", {"did": self._did}),
                     ("com.atproto.sync.listRepos", {"limit": "1"}))  # fmt: skip
        while not self._ending.wait(CROWD_SECONDS):
            for pds in self._network.pdses:
                for method, query in questions:
                    with contextlib.suppress(httpx.TransportError):  # while it starts
                        answer = httpx.get(f"{pds.url}/xrpc/{method}", params=query)
                        refused = answer.status_code == httpx.codes.TOO_MANY_REQUESTS
                        self.answers["refused" if refused else "served"] += 1
