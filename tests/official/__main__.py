"""Say what `make official` covers and what it lacks here, and install the official packages."""

import os
import sys

from tests.official.installation import RELEASES, installed, missing

COVERS = f"""\
make official runs the pipeline beside the official network of npm's packages, on loopback:
PLC directory, two PDSes, AppView with its data plane, bsync, Ozone.
  all rows of both indexers, live while workers and stores are killed, and from history
  what the official migrator finds after `db init`
  the answers of an AppView over each database, by the page that an operator follows
  mutes, bookmarks, drafts, settings and "seen" through an AppView and bsync, which is killed,
    gets another key and another database, and commits operations late
  the official indexer that goes on from our rows, and the pipeline from its rows
  records that no lexicon allows, as the default rule takes them and an AppView shows them
  labels, keys that change, accounts that move between the PDSes, accounts of did:web
  a repo of 24,000 records that is imported, a PDS that loses its sequencer, PDSes with rate limits
It takes about half an hour for each release ({", ".join(RELEASES)}; RELEASE=VERSION for
one), and five minutes more where its packages have to be installed: 650 MB each."""


def main() -> int:
    """Return the exit code."""
    print(COVERS, flush=True)
    wanted = os.environ.get("RELEASE")
    if wanted and wanted not in RELEASES:
        print(f"\nRELEASE={wanted} is none of tests/official/releases: {', '.join(RELEASES)}")
        return 1
    if lacks := missing():
        print("\nIt cannot run here:", *lacks, sep="\n  ")
        return 1
    for release in [wanted] if wanted else RELEASES:
        installed(release, lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
