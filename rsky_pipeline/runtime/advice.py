"""Commands of this program that messages advise. Tests look up each in the command line itself."""

import shlex


def advised(*words: str) -> str:
    """Return a command line as it is to be typed, between backticks.

    Words in capitals stand for what the operator chooses.
    """
    return f"`{shlex.join(('rsky-pipeline', *words))}`"
