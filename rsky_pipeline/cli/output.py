"""What commands print: data on standard output, talk on standard error."""

import json
from collections.abc import Sequence
from typing import Any

import click


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns."""
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(header))]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def say(message: str) -> None:
    """Print a line for the person at the terminal."""
    click.echo(f"rsky-pipeline: {message}", err=True)


def fail(message: str, code: int) -> "click.exceptions.Exit":
    """Print what is wrong and return the exception that ends the command with a code."""
    say(message)
    return click.exceptions.Exit(code)
