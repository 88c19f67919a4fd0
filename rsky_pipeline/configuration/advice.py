"""Commands that messages advise: how one is written, and for which configuration.

A message names a command between backticks, `rsky-pipeline status`; `advised` writes one with words
that need quoting. Wherever messages leave a process (a terminal, the log, a health document),
`complete` adds what chooses the pipeline that the process belongs to: without `--config`, an
operator of a second pipeline would be advised to restart the first. Tests look up every advised
command in the tree of commands.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsky_pipeline.configuration.sources import CONFIG_VARIABLE, DEFAULT_FILES

CHOOSING = ("--config", "--data-dir", "--run-dir")
# Commands without these options, or that say nothing about one pipeline.
_APART = frozenset({"completion", "simulate", "demo"})
_MARK = "`rsky-pipeline "
_ADVISED = re.compile(f"{re.escape(_MARK)}([^`]+)`")
_options: tuple[str, ...] = ()


def advised(*words: str) -> str:
    """Return a command line of this program as it is to be typed, between backticks.

    Words in capitals stand for what the operator chooses.
    """
    return f"{_MARK}{shlex.join(words)}`"


def choose(given: Mapping[str, Path | str | None], environ: Mapping[str, str]) -> None:
    """Note the options by which this process was told its configuration, by their names.

    None of them is needed for the configuration of the units.
    """
    config = given.get("--config") or environ.get(CONFIG_VARIABLE)
    if config is not None and Path(config).absolute() == DEFAULT_FILES[-1]:
        config = None
    chosen = {**given, "--config": config}
    global _options  # noqa: PLW0603 - there is one configuration a process
    _options = tuple(
        word
        for name in CHOOSING
        if (value := chosen.get(name))
        for word in (name, os.path.abspath(Path(value).expanduser()))
    )


def options() -> Sequence[str]:
    """Return the options that a command of this pipeline needs."""
    return _options


def complete(text: str) -> str:
    """Return a message whose commands are for the pipeline of this process."""
    if not _options or _MARK not in text:
        return text
    return _ADVISED.sub(lambda found: f"{_MARK}{_completed(found[1])}`", text)


def complete_all(document: object) -> object:
    """Return a JSON document whose messages are complete."""
    if isinstance(document, str):
        return complete(document)
    if isinstance(document, Mapping):
        return {key: complete_all(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [complete_all(each) for each in document]
    return document


def _completed(line: str) -> str:
    words = line.split()
    if words[0] in _APART or {*CHOOSING, "--help"} & {word.partition("=")[0] for word in words}:
        return line
    before, separator, after = line.partition(" -- ")
    return f"{before} {shlex.join(_options)}{separator}{after}"
