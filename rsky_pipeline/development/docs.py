"""`make docs`: bring the generated parts of docs/ up to date."""

from rsky_pipeline.cli.output import say
from rsky_pipeline.development.documents import ROOT, pages


def main() -> None:
    """Write the pages that changed, and print their names."""
    for path, text in pages().items():
        if path.is_file() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        say(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
