"""Where settings are read from: the TOML file and the environment, that of the original services
included."""

import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from rsky_pipeline.configuration.settings import SettingInfo
from rsky_pipeline.configuration.topology import (
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
)

_OTHERWISE = "run this as the pipeline's account or as root, or name another file with --config"

PREFIX = "RSKY_PIPELINE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_FILES = (Path("rsky-pipeline.toml"), Path("/etc/rsky-pipeline/rsky-pipeline.toml"))
UNITS_ENVIRONMENT = "environment"  # beside the last of them: EnvironmentFile= of the units
MAX_FILE_BYTES = 1_000_000
MAX_SECRET_CHARACTERS = 10_000
FILE_SUFFIX = "_file"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Variables of the original services that have no counterpart here are no errors: a deployment that
# is moved over keeps its environment. `config check` reports each of them.
_MODE = "roles are chosen with `run --role`"
_CONSUMER = "consumers name themselves after host, role and number"
_POOL = "each worker has one writing connection; see indexer_workers"

_UNUSED: Mapping[str, str] = {
    "INGESTER_MODE": _MODE,
    "INDEXER_MODE": _MODE,
    "INDEXER_CONSUMER": _CONSUMER,
    "BACKFILLER_CONSUMER": _CONSUMER,
    "INDEXER_CONCURRENCY": "batches take the place of tasks; see indexer_batch_size",
    "BACKFILLER_BATCH_SIZE": "batches of firehose_backfill have a size of their own",
    "DB_POOL_MAX_SIZE": _POOL,
    "DB_POOL_MIN_IDLE": _POOL,
    "METRICS_PORT": "it meant a port for each process; set ingester_metrics_port, "
    "indexer_metrics_port and backfiller_metrics_port",
    "INGESTER_LABEL_STREAM_HIGH_WATER_MARK": "live_high_water_mark holds for label_live too",
    "BACKFILLER_SKIP_SIGNATURE_VERIFICATION": "commits of fetched repos are always verified",
    "ENABLE_DID_RESOLUTION": "identities are always resolved",
    "RUST_LOG": "set log_level",
}

# Names of streams and groups are fixed: all workers, also the original ones, must agree on them.
_FIXED: Mapping[str, str] = {
    "INGESTER_FIREHOSE_STREAM": FIREHOSE_LIVE,
    "INGESTER_LABEL_STREAM": LABEL_LIVE,
    "INGESTER_REPO_STREAM": REPO_BACKFILL,
    "INDEXER_STREAMS": f"{FIREHOSE_LIVE},{FIREHOSE_BACKFILL}",
    "INDEXER_LABEL_STREAM": LABEL_LIVE,
    "BACKFILLER_BACKFILL_STREAM": REPO_BACKFILL,
    "BACKFILLER_FIREHOSE_STREAM": FIREHOSE_BACKFILL,
    "BACKFILLER_DLQ_STREAM": f"{REPO_BACKFILL}_dlq",
}


@dataclass(frozen=True, slots=True)
class Given:
    """A value before it is checked, and where it stands."""

    name: str
    raw: object
    origin: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file in use and why it is."""

    path: Path
    chosen_by: str


def find_file(
    given: Path | None, environ: Mapping[str, str], problems: list[str]
) -> ConfigFile | None:
    """Return the file to read: given, named by the environment, or the first default there is.

    A default place that may not be looked at is a problem: it may hold the settings of the pipeline
    that runs here, and a command without them would act on another one.
    """
    if given is not None:
        return ConfigFile(given, "--config")
    if environ.get(CONFIG_VARIABLE):
        return ConfigFile(Path(environ[CONFIG_VARIABLE]), CONFIG_VARIABLE)
    for path in DEFAULT_FILES:
        try:
            if stat.S_ISREG(path.stat().st_mode):
                return ConfigFile(path.absolute(), "default location")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}; {_OTHERWISE}")
            return None
    return None


def read_file(file: ConfigFile, problems: list[str]) -> list[Given]:
    """Return the settings of the file; its problems are added to `problems`."""
    try:
        with file.path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            problems.append(f"{file.path}: is larger than {MAX_FILE_BYTES} bytes")
            return []
        document = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        hint = f"; {_OTHERWISE}" if isinstance(error, PermissionError) else ""
        where = f"{file.path} (from {file.chosen_by})"
        problems.append(f"{where}: cannot be read: {error.strerror}{hint}")
        return []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{file.path}: is not TOML: {error}")
        return []
    tables = [name for name, value in document.items() if isinstance(value, dict)]
    problems += [f"{file.path}: [{name}]: settings stand at the top, without tables"
                 for name in tables]  # fmt: skip
    return [Given(name, document[name], str(file.path)) for name in document if name not in tables]


def read_credentials(
    environ: Mapping[str, str], known: Mapping[str, SettingInfo], problems: list[str]
) -> Iterator[Given]:
    """Yield the secret settings that systemd hands over (LoadCredential=, systemd.exec(5))."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "").strip()
    for name in _secrets(known) if folder else ():
        path = Path(folder, name)
        if path.exists():
            text = read_secret(path, f"credential {name}", problems)
            if text is not None:
                yield Given(name, text, f"systemd credential {name}")


def read_secret(path: Path, origin: str, problems: list[str]) -> str | None:
    """Return the content of the file of a secret, without the line break at its end."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_SECRET_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problems.append(f"{path} (from {origin}): cannot be read: {why}")
        return None
    if len(text) > MAX_SECRET_CHARACTERS or not text.strip():
        why = "empty" if not text.strip() else f"longer than {MAX_SECRET_CHARACTERS} characters"
        problems.append(f"{path} (from {origin}): is {why}")
        return None
    return text.strip()


def _secrets(known: Mapping[str, SettingInfo]) -> list[str]:
    return [name for name, info in known.items() if info.secret]


def from_file(item: Given, known: Mapping[str, SettingInfo], problems: list[str]) -> Given | None:
    """Return a setting whose value stands in a file: `redis_url_file` for `redis_url`.

    Only settings with passwords have such a name. Others are returned as they are; None where the
    file cannot be used.
    """
    name = item.name.removesuffix(FILE_SUFFIX)
    if item.name in known or name == item.name or name not in _secrets(known):
        return item
    if not isinstance(item.raw, str):
        problems.append(f"{item.name} (from {item.origin}): allowed is the path of a file")
        return None
    text = read_secret(Path(item.raw.strip()), item.origin, problems)
    return None if text is None else Given(name, text, f"{item.origin} (file {item.raw.strip()})")


def units_environment(
    file: ConfigFile | None, environ: Mapping[str, str], problems: list[str]
) -> dict[str, str]:
    """Return the variables that systemd hands to our units, if `file` is their configuration.

    A command beside the units that lacked them would act on other stores than the units do. Within
    a unit they are there already, and its account need not be able to read the file.
    """
    if file is None or file.path.absolute() != DEFAULT_FILES[-1] or "NOTIFY_SOCKET" in environ:
        return {}
    path = file.path.with_name(UNITS_ENVIRONMENT)
    try:
        if path.stat().st_size == 0:  # as it is installed
            return {}
        found, ignored = parse_environment_file(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        problems.append(f"{path}: cannot be read: {why}; {_OTHERWISE}")
        return {}
    problems += [
        f"{path}: line {number} has no effect, as for systemd: write NAME=VALUE, without `export`"
        for number in ignored
    ]
    return found


def parse_environment_file(text: str) -> tuple[dict[str, str], list[int]]:
    """Return the variables of a file as systemd reads it (systemd.exec(5), EnvironmentFile=), and
    the numbers of lines that it ignores and that are no comments.

    It is no shell: `&`, `$` and `?` stand for themselves, and `export` makes another name.
    """
    found: dict[str, str] = {}
    ignored = []
    at = 0
    while at < len(text):
        line = text[at:].partition("\n")[0]
        number = text.count("\n", 0, at) + 1
        name, separator, _ = line.partition("=")
        is_comment = line.lstrip().startswith(("#", ";"))
        if not separator or is_comment:
            at += len(line) + 1
            ignored += [number] * (not is_comment and bool(line.strip()))
            continue
        value, at = _assigned(text, at + len(name) + 1)
        if _VARIABLE.fullmatch(name.strip()):
            found[name.strip()] = value
        else:
            ignored.append(number)
    return found, ignored


def _assigned(text: str, at: int) -> tuple[str, int]:
    """Return the value that begins at a position, and the position behind its line.

    Single quotes keep everything; double quotes all but a backslash before a quote, a backslash,
    a backtick, a dollar or a line break. Elsewhere a backslash keeps the next character, or joins
    the next line, and blanks around the value are dropped.
    """
    value: list[str] = []
    solid = 0  # so many characters are kept: blanks at the end are not
    quote, is_bare = "", False
    while at < len(text):
        char, at = text[at], at + 1
        if char == quote:
            quote = ""
        elif quote:
            if quote == '"' and char == "\\" and text[at : at + 1] in tuple('"\\`$\n'):
                char, at = text[at].replace("\n", ""), at + 1
            value.append(char)
            solid = len(value)
        elif char == "\n":
            break
        elif char == "\\":
            value.append(text[at : at + 1].replace("\n", ""))
            at, is_bare, solid = at + 1, True, len(value)
        elif char in "'\"" and not is_bare:
            quote = char
        elif is_bare or not char.isspace():
            value.append(char)
            is_bare = True
            solid = solid if char.isspace() else len(value)
    return "".join(value[:solid]), at


def read_environment(
    environ: Mapping[str, str],
    known: Mapping[str, SettingInfo],
    problems: list[str],
    handed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Given]:
    """Yield the settings of the environment; an empty variable sets nothing.

    A variable of ours wins over those of the original services. NAME_FILE names the file of a
    secret. `handed` are variables of the units, which those of `environ` replace.
    """
    environ = together(handed, environ)
    own = {f"{PREFIX}{name.upper()}": name for name in known}
    own |= {f"{PREFIX}{name.upper()}_FILE": name for name in _secrets(known)}
    problems += [
        f"environment variable {variable}: there is no such setting{nearest(variable, own)}"
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in own and variable != CONFIG_VARIABLE
    ]
    for name, info in known.items():
        candidates = (f"{PREFIX}{name.upper()}", *info.legacy_environment)
        for candidate in candidates:
            file = f"{candidate}_FILE" if info.secret else ""
            given = [each for each in (candidate, file) if environ.get(each, "").strip()]
            if len(given) == 2:
                problems.append(f"environment variables {candidate} and {file}: give one of them")
            if given:
                setting = name + FILE_SUFFIX if given[0] == file else name
                origin = f"environment variable {given[0]}"
                if handed.get(given[0]) == environ[given[0]]:
                    origin += f" of {DEFAULT_FILES[-1].with_name(UNITS_ENVIRONMENT)}"
                yield Given(setting, environ[given[0]], origin)
                break


def together(handed: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the units, replaced by those of a command that are not empty."""
    return {**handed, **{name: text for name, text in environ.items() if text.strip()}}


def nearest(name: str, known: Mapping[str, object]) -> str:
    """Return `; did you mean ...?` if a known name is close, else nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def remarks(environ: Mapping[str, str]) -> Sequence[str]:
    """Return a line for each variable that is set and has no effect."""
    unused = [f"{name} has no effect: {why}" for name, why in _UNUSED.items() if environ.get(name)]
    fixed = [
        f"{name} = {environ[name][:100]!r} has no effect: the name is always {value}"
        for name, value in _FIXED.items()
        if environ.get(name) and environ[name].replace(" ", "") != value
    ]
    return unused + fixed
