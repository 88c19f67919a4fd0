"""One target under atheris (libFuzzer); the arguments are its name and libFuzzer's options."""

import logging
import sys

import atheris

with atheris.instrument_imports(include=["rsky_pipeline"]):
    from tests.fuzz.targets import TARGETS

logging.disable()
name = sys.argv.pop(1)
atheris.Setup(sys.argv, TARGETS[name].run)
atheris.Fuzz()
