"""The commands of the pages in docs/, as they stand there, for tests that run them one by one."""

import re

from rsky_pipeline.development.documents import ROOT


def commands(section: str, page: str = "runbook.md", part: str = "") -> list[str]:
    """Return the commands of a section of a page, or of the part of it that begins with `**part`.

    Raises ValueError where there is none: a heading that was changed must not pass for a section
    without commands.
    """
    text = (ROOT / "docs" / page).read_text()
    found = re.search(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    body = found[1] if found else ""
    if part:
        piece = re.search(
            rf"^\*\*{re.escape(part)}(.*?)(?=^\*\*|\Z)", body, re.MULTILINE | re.DOTALL
        )
        body = piece[1] if piece else ""
    lines = [line.strip() for line in body.splitlines() if line.startswith("    ")]
    if not lines:
        raise ValueError(f"docs/{page} has no commands in {section!r} {part!r}")
    return lines
