"""A program file, asked by its own commands: it may be of any version."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.program import clean_environment

VERSION_SECONDS = 120.0  # the first start unpacks
COMMAND_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended; `document` is the JSON that it printed, None if it printed none."""

    code: int
    document: Any
    talk: str  # the last lines of its standard error

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0

    def complaint(self) -> str:
        """Return why it failed, in its own words."""
        words = self.talk or (json.dumps(self.document)[:300] if self.document else "")
        return f"exit code {self.code}" + (f": {words}" if words else "")


@dataclass(frozen=True, slots=True)
class Program:
    """A program file and the arguments that name the configuration."""

    path: Path
    configuration: Sequence[str] = ()

    def build(self) -> dict[str, Any]:
        """Return its version, commit and build time. Raises WorkerError when it does not run."""
        answer = self.ask("version", "--json", configured=False, seconds=VERSION_SECONDS)
        document = answer.document
        if not answer.ok or not isinstance(document, dict) or "version" not in document:
            raise WorkerError(f"{self.path} does not tell its version: {answer.complaint()}")
        return document

    def ask(
        self, *arguments: str, configured: bool = True, seconds: float = COMMAND_SECONDS
    ) -> Answer:
        """Run a command. Raises WorkerError when it cannot be run or does not end."""
        command = [str(self.path), *arguments, *(self.configuration if configured else ())]
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                env=clean_environment(os.environ),
                timeout=seconds,
                check=False,
            )
        except OSError as error:
            raise WorkerError(f"{self.path} cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            words = " ".join(arguments)
            raise WorkerError(f"{self.path} {words} did not end in {seconds:.0f} s") from error
        talk = " | ".join(result.stderr.strip().splitlines()[-3:])
        return Answer(result.returncode, _json(result.stdout), talk)


def describe(build: dict[str, Any] | None) -> str:
    """Return a build in a few words."""
    if build is None:
        return "unknown"
    return f"{build.get('version')} (commit {build.get('commit')}, built {build.get('built_at')})"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
