"""`python -m rsky_pipeline`: the same program as the `rsky-pipeline` command."""

from rsky_pipeline.cli import main

if __name__ == "__main__":
    main()
