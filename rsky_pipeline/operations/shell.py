"""psql and redis-cli, logged in as the pipeline is: `db shell` and `stores shell`.

Whoever runs them need not write the URL once more: neither its password, which would stand in the
list of processes and the history of the shell, nor the options of TLS, nor the schema. Secrets are
passed by the environment, or in a file in memory where libpq has no variable for one.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.store_urls import parse_redis_url
from rsky_pipeline.database.connection import Database, Login, login_of, search_path
from rsky_pipeline.embedded.locations import embedded_stores, postgres_folder
from rsky_pipeline.runtime.errors import SettingError, UnavailableError
from rsky_pipeline.streams.connection import Store

_PSQL = ("psql",)
_REDIS_CLIS = ("valkey-cli", "redis-cli")  # the same arguments
_PACKAGES: Mapping[tuple[str, ...], str] = {
    _PSQL: "apt-get install postgresql-client (Debian, Ubuntu), dnf install postgresql (Fedora), "
    "brew install libpq (macOS)",
    _REDIS_CLIS: "apt-get install redis-tools (Debian, Ubuntu), dnf install valkey (Fedora), "
    "brew install valkey (macOS)",
}
_SERVICE = "rsky-pipeline"
# Of redis-py's options of TLS, with those of redis-cli.
_TLS = {
    "ssl_ca_certs": "--cacert", "ssl_ca_path": "--cacertdir", "ssl_certfile": "--cert",
    "ssl_keyfile": "--key",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A client program, its arguments, and variables beside those of this process."""

    program: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    remarks: Sequence[str] = ()

    def execute(self) -> NoReturn:
        """Put the client in the place of this process, which keeps its terminal. Raises OSError."""
        sys.stdout.flush()
        sys.stderr.flush()
        words = [Path(self.program).name, *self.arguments]
        os.execve(self.program, words, {**os.environ, **self.environment})  # noqa: S606


def psql(settings: Settings, database: Database, arguments: Sequence[str]) -> ClientCall:
    """Return the call of psql for a database that has just let us in.

    Raises UnavailableError if there is no psql.
    """
    program = _found(_PSQL)
    if embedded_stores(settings)[1]:
        program = str(postgres_folder() / "bin" / "psql")  # of the server's version
    path, options, remarks = search_path(settings.database_schema), "", list[str]()
    if database.pooled:
        remarks = [f"a pooler is asked in between: begin with SET search_path TO {path};"]
    else:
        options = f"-csearch_path={path.replace(' ', '')}"
    login = login_of(settings.database_url or "", options=options)
    environment, text = dict(login.environment), login.text
    if login.secrets:
        text = f"service={_SERVICE} {text}"
        environment["PGSERVICEFILE"] = _in_memory(_service(login))
    return ClientCall(program or _missing(_PSQL), [f"--dbname={text}", *arguments], environment,
                      remarks)  # fmt: skip


def _service(login: Login) -> str:
    """Return a service file of libpq with the secrets that have no variable."""
    for name, secret in login.secrets.items():
        if secret != secret.strip() or not secret.isprintable():
            raise SettingError(f"{name} of database_url cannot be passed to psql: blanks at an end")
    lines = (f"{name}={secret}\n" for name, secret in login.secrets.items())
    return f"[{_SERVICE}]\n{''.join(lines)}"


def _in_memory(text: str) -> str:
    """Return the path of a file that only this process has, and what is put in its place."""
    if not hasattr(os, "memfd_create"):
        raise SettingError("database_url has secrets that cannot be passed to psql on this system")
    file = os.memfd_create(_SERVICE)
    os.set_inheritable(file, True)
    os.write(file, text.encode())
    return f"/proc/self/fd/{file}"


def redis_cli(settings: Settings, store: Store, arguments: Sequence[str]) -> ClientCall:
    """Return the call of valkey-cli or redis-cli for a Redis that has just let us in.

    Behind sentinels it is for the present primary. Raises UnavailableError if there is none of
    both, SettingError for a login that they cannot make.
    """
    program = _found(_REDIS_CLIS) or _missing(_REDIS_CLIS)
    address = parse_redis_url(settings.redis_url or "")
    words, login = ["-n", str(address.database)], address.login
    environment, remarks = dict[str, str](), list[str]()
    if address.socket is not None:
        words += ["-s", address.socket]
    else:
        host, port = store.address()
        words += ["-h", host, "-p", str(port)] + ["-c"] * store.on_cluster
    if login.username:
        words += ["--user", login.username]
    if login.password:
        environment = dict.fromkeys(("REDISCLI_AUTH", "VALKEYCLI_AUTH"), login.password)
    if login.tls is not None:
        if "ssl_password" in login.tls:
            raise SettingError(f"{Path(program).name} takes no ssl_password for ssl_keyfile")
        words.append("--tls")
        for name, option in _TLS.items():
            words += [option, str(login.tls[name])] if name in login.tls else []
        if login.tls.get("ssl_cert_reqs") == "none":
            words.append("--insecure")
        elif login.tls.get("ssl_check_hostname", True):
            remarks = [f"{Path(program).name} checks the server's certificate, not its name"]
    return ClientCall(program, [*words, *arguments], environment, remarks)


def _found(names: Sequence[str]) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


def _missing(names: tuple[str, ...]) -> NoReturn:
    raise UnavailableError(f"{' or '.join(names)} is not installed: {_PACKAGES[names]}")
