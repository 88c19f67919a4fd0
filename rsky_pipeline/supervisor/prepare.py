"""Checking the stores and upgrading the schema in a process that ends.

The clients of both stores and the schema take 20 MB, which a supervisor would keep for good.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from rsky_pipeline.configuration import advice
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime import errors
from rsky_pipeline.runtime.channel import encode_settings
from rsky_pipeline.supervisor.spawn import worker_environment


def prepare_apart(
    settings: Settings, with_database: bool, tell: Callable[[str], None] = lambda _: None
) -> list[str] | None:
    """Call `prepare_stores` in a process of its own, with the same outcome; it blocks."""

    program = (sys.executable, "-P", "-m", "rsky_pipeline", "prepare-stores")
    database = "--database" if with_database else "--no-database"
    read, write = os.pipe()
    try:
        os.write(write, encode_settings(settings))  # fits into the pipe, so this cannot block
        os.close(write)
        process = subprocess.Popen(
            [*program, *advice.options(), database, "--settings-fd", str(read)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(read,), text=True,
            env=worker_environment(),
            process_group=0,  # Ctrl-C reaches the supervisor alone
        )  # fmt: skip
    finally:
        os.close(read)
    with process:
        for line in process.stdout or ():
            match json.loads(line):
                case {"remark": str(remark)}:
                    tell(remark)
                case {"changes": changes}:
                    return None if changes is None else [*changes]
                case {"error": text, "code": code}:
                    kinds = (
                        errors.UnavailableError, errors.PermissionDeniedError, errors.SettingError,
                    )  # fmt: skip
                    kind = next((each for each in kinds if each.exit_code == code), None)
                    raise (kind or errors.WorkerError)(text)
    raise errors.WorkerError(f"the stores were not prepared: exit code {process.returncode}")
