"""Where settings are read from: the TOML file and the environment."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rsky_pipeline.configuration.declaration import SettingInfo

PREFIX = "RSKY_PIPELINE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_FILES = (Path("rsky-pipeline.toml"), Path("/etc/rsky-pipeline/rsky-pipeline.toml"))
MAX_FILE_BYTES = 1_000_000


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


def find_file(given: Path | None, environ: Mapping[str, str]) -> ConfigFile | None:
    """Return the file to read: as given, as the environment says, or the first default there is."""
    if given is not None:
        return ConfigFile(given, "--config")
    if environ.get(CONFIG_VARIABLE):
        return ConfigFile(Path(environ[CONFIG_VARIABLE]), CONFIG_VARIABLE)
    found = next((path for path in DEFAULT_FILES if path.is_file()), None)
    return None if found is None else ConfigFile(found.absolute(), "default location")


def read_file(file: ConfigFile, problems: list[str]) -> list[Given]:
    """Return what the file sets; what is wrong with it is added to `problems`."""
    try:
        with file.path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            problems.append(f"{file.path}: is larger than {MAX_FILE_BYTES} bytes")
            return []
        document = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        problems.append(f"{file.path} (from {file.chosen_by}): cannot be read: {error.strerror}")
        return []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{file.path}: is not TOML: {error}")
        return []
    tables = [name for name, value in document.items() if isinstance(value, dict)]
    problems += [f"{file.path}: [{name}]: settings stand at the top, without tables"
                 for name in tables]  # fmt: skip
    return [Given(name, document[name], str(file.path)) for name in document if name not in tables]


def read_environment(
    environ: Mapping[str, str], known: Mapping[str, SettingInfo], problems: list[str]
) -> Iterator[Given]:
    """Yield what the environment sets; an empty variable sets nothing.

    A variable of ours wins over those of the original services.
    """
    own = {f"{PREFIX}{name.upper()}": name for name in known}
    problems += [
        f"environment variable {variable}: there is no such setting{nearest(variable, own)}"
        for variable in sorted(environ)
        if variable.startswith(PREFIX) and variable not in own and variable != CONFIG_VARIABLE
    ]
    for name, info in known.items():
        candidates = (f"{PREFIX}{name.upper()}", *info.legacy_environment)
        variable = next((item for item in candidates if environ.get(item, "").strip()), None)
        if variable is not None:
            yield Given(name, environ[variable], f"environment variable {variable}")


def nearest(name: str, known: Mapping[str, object]) -> str:
    """Return `; did you mean ...?` if a known name is close, else nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
