"""The account of an embedded server if we are root, and the permissions that it needs.

PostgreSQL refuses to run as root. Its files must then belong to an unprivileged account, and that
account needs search permission on every directory above them and above its programs.
"""

import logging
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.embedded.errors import EmbeddedStoreError

ACCOUNT_NAME = "rsky-pipeline"
FALLBACK_NAMES = ("nobody",)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SystemAccount:
    """A system account."""

    name: str
    uid: int
    gid: int


def unprivileged_account(owned: Path) -> SystemAccount | None:
    """Return the account to run as, or None if we are not root (no change of account).

    An existing directory `owned` keeps its owner. Otherwise the account `rsky-pipeline` is used,
    created when it is missing; where that is impossible, `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = owned.stat().st_uid
    except FileNotFoundError:
        owner = 0
    if owner != 0:
        return _by_uid(owner)
    found = _by_name(ACCOUNT_NAME) or _create() or _by_name(*FALLBACK_NAMES)
    if found is None:
        raise EmbeddedStoreError(
            f"PostgreSQL cannot run as root, and there is neither an account {ACCOUNT_NAME} nor "
            "nobody; create one, run as another user, or set database_url"
        )
    return found


def give(path: Path, account: SystemAccount | None) -> None:
    """Create a directory if it is missing, and make it private to an account.

    Raises EmbeddedStoreError.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(path, account.uid, account.gid)
        path.chmod(0o700)
    except OSError as error:
        raise EmbeddedStoreError(
            f"cannot create the directory {path}: {error.strerror}; choose another data_dir"
        ) from error


def let_through(path: Path, account: SystemAccount) -> None:
    """Grant the account search permission on all directories above `path`; logs every change."""
    for parent in path.resolve().parents:
        status = parent.stat()
        if status.st_uid == account.uid or status.st_mode & stat.S_IXOTH:
            continue
        log.warning(
            "directory made passable (o+x) for the account of an embedded store",
            extra={"directory": str(parent), "account": account.name},
        )
        parent.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


def let_read(folder: Path) -> None:
    """Make a folder readable by all accounts, and executable where its owner may execute."""
    for directory, _, names in os.walk(folder):
        _add_mode(Path(directory), 0o005)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                _add_mode(path, 0o005 if path.stat().st_mode & stat.S_IXUSR else 0o004)


def _add_mode(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)


def _by_uid(uid: int) -> SystemAccount:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return SystemAccount(str(uid), uid, uid)
    return SystemAccount(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _by_name(*names: str) -> SystemAccount | None:
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return SystemAccount(entry.pw_name, entry.pw_uid, entry.pw_gid)
    return None


def _create() -> SystemAccount | None:
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        return None
    log.warning("creating a system account for PostgreSQL", extra={"account": ACCOUNT_NAME})
    command = [useradd, "--system", "--no-create-home", "--shell", "/bin/false", ACCOUNT_NAME]
    try:
        subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        # Another process may have created it at the same moment; a read-only /etc is no obstacle.
        log.info("useradd failed", extra={"error": str(error)})
    return _by_name(ACCOUNT_NAME)
