"""The exit code tells the supervisor whether trying again makes sense."""

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.runtime import errors
from rsky_pipeline.runtime.errors import (
    PermissionDeniedError,
    SettingError,
    UnavailableError,
    WorkerError,
    exit_code_of,
)


def test_codes_are_those_of_the_program() -> None:
    assert UnavailableError.exit_code == ExitCode.UNAVAILABLE
    assert PermissionDeniedError.exit_code == ExitCode.NO_PERMISSION
    assert SettingError.exit_code == ExitCode.CONFIGURATION
    assert errors.FORCED == ExitCode.FORCED
    assert errors.UNEXPECTED == ExitCode.FAILED


def test_a_known_error_keeps_its_words() -> None:
    assert exit_code_of(UnavailableError("redis is away")) == (69, "redis is away")


def test_errors_are_found_inside_groups() -> None:
    inner = ExceptionGroup("inner", [UnavailableError("redis is away")])
    assert exit_code_of(ExceptionGroup("outer", [inner])) == (69, "redis is away")


def test_a_final_error_wins_over_everything() -> None:
    group = ExceptionGroup("", [ValueError("x"), UnavailableError("y"), SettingError("z")])
    assert exit_code_of(group) == (78, "z")


def test_an_unknown_error_is_not_hidden_by_a_known_one() -> None:
    group = ExceptionGroup("", [UnavailableError("y"), ValueError("x")])
    assert exit_code_of(group) == (1, "ValueError: x")
    assert exit_code_of(WorkerError("plain")) == (1, "plain")
