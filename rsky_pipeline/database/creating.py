"""Creating the role and the database that `database_url` names, as the server's administrator.

For a server of one's own, once. Only this file logs in as anybody else than the pipeline's role.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rsky_pipeline.database.errors import LoginRefusedError, translate

ADMINISTRATOR = "postgres"
SOCKETS = "/var/run/postgresql"
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_HIDDEN = "'***'"


@dataclass(frozen=True, slots=True)
class NewDatabase:
    """The role and the database that a URL names. Raises ValueError for a URL that lacks one."""

    url: str
    role: str
    password: str | None
    name: str

    @classmethod
    def of(cls, url: str) -> "NewDatabase":
        """Read a URL."""
        found = conninfo_to_dict(url)
        role, name = str(found.get("user") or ""), str(found.get("dbname") or "")
        if not role or not name:
            raise ValueError(
                "database_url has to name a role and a database: postgresql://ROLE@/DB"
            )
        password = found.get("password")
        return cls(url, role, None if password is None else str(password), name)


def administrators_url(url: str) -> str:
    """Return the URL of the administrator on the same server, by its socket on this machine.

    Raises ValueError for another machine, whose administrator has to be given.
    """
    found = conninfo_to_dict(url)
    host = str(found.get("host") or "")
    if host not in _LOCAL and not host.startswith("/"):
        raise ValueError(f"the server is on {host}: give its administrator with --admin-url")
    socket = host if host.startswith("/") else SOCKETS
    return make_conninfo(
        user=ADMINISTRATOR, dbname="postgres", host=socket, port=str(found.get("port") or 5432)
    )


def create(target: NewDatabase, admin: str, *, dry_run: bool = False) -> list[str]:
    """Create the role and the database where missing; return the statements, without the
    password. Raises DatabaseError.

    Root logs in by a socket as the account of the administrator.
    """
    done: list[str] = []
    with _session(admin) as session:
        for shown, statement in _statements(session, target):
            done.append(shown)
            if not dry_run:
                _execute(session, statement)
    if not dry_run:
        # A trusted extension, but in a database of others our role may not create it.
        with _session(admin, target.name) as session:
            statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public")
            _execute(session, statement)
    return [*done, "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public"]


def login_problem(target: NewDatabase, admin: str) -> list[str]:
    """Log in as the pipeline will; return why that is refused, and what to do, else nothing."""
    try:
        with psycopg.connect(target.url, connect_timeout=10):
            return []
    except psycopg.Error as error:
        found = translate(error)
    if not isinstance(found, LoginRefusedError) or "pg_hba" not in str(found):
        return [str(found)]
    with _session(admin) as session:
        file = session.execute("SHOW hba_file").fetchone()
    line = f"host {target.name} {target.role} ADDRESS/32 scram-sha-256"
    remedy = (
        f"to do: add the line `{line}` to {file[0] if file else 'pg_hba.conf'} of the server, with "
        "the address that it names, and run SELECT pg_reload_conf()"
    )
    return [str(found), remedy]


def _statements(
    session: psycopg.Connection, target: NewDatabase
) -> Iterator[tuple[str, sql.SQL | sql.Composed]]:
    """Yield what is missing, as it is shown and as it is executed."""
    role, name = sql.Identifier(target.role), sql.Identifier(target.name)

    def plain(statement: sql.SQL | sql.Composed) -> tuple[str, sql.SQL | sql.Composed]:
        return statement.as_string(session), statement

    if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [target.role]).fetchone():
        login = sql.SQL("CREATE ROLE {} LOGIN").format(role)
        if target.password is None:
            yield plain(login)
        else:
            # Logs of the server show statements, so it is given the hash alone.
            hashed = session.pgconn.encrypt_password(
                target.password.encode(), target.role.encode(), b"scram-sha-256"
            ).decode()
            shown = f"{login.as_string(session)} PASSWORD {_HIDDEN}"
            yield shown, sql.SQL("{} PASSWORD {}").format(login, sql.Literal(hashed))
    if session.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.name]).fetchone():
        yield plain(
            sql.SQL("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}").format(name, role)
        )
        return
    is_superuser = session.execute("SELECT usesuper FROM pg_user WHERE usename = user").fetchone()
    if is_superuser != (True,):  # else it may not make the role the owner
        yield plain(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    create = sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
    yield plain(create.format(name, role))


def _execute(session: psycopg.Connection, statement: sql.SQL | sql.Composed) -> None:
    try:
        session.execute(statement)
    except psycopg.Error as error:
        raise translate(error, statement=statement.as_string(session)[:40]) from error


@contextmanager
def _session(admin: str, database: str | None = None) -> Iterator[psycopg.Connection]:
    """Connect; root does so by a socket under the account of the administrator's name."""
    conninfo = make_conninfo(admin, **({"dbname": database} if database else {}))
    try:
        with _connected(conninfo) as session:
            yield session
    except psycopg.Error as error:
        raise translate(error) from error


def _connected(conninfo: str) -> psycopg.Connection:
    try:
        return psycopg.connect(conninfo, autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        if "Peer authentication" not in str(error) or os.geteuid() != 0:
            raise
        try:
            account = pwd.getpwnam(str(conninfo_to_dict(conninfo).get("user")))
        except KeyError:
            raise error from None
    os.seteuid(account.pw_uid)  # the server sees the account of whoever connects
    try:
        return psycopg.connect(conninfo, autocommit=True, connect_timeout=10)
    finally:
        os.seteuid(0)
