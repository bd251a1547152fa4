"""`python -m faults [--only NAME ...] [--short] [--minutes M] [--json PATH]`: inject the faults, print the table."""

import argparse
import sys
from pathlib import Path

from faults import suite
from runtime.files import write_json


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 where every fault was survived, else 1."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=suite.__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=list(suite.PARTS), default=list(suite.PARTS), metavar="NAME")
    parser.add_argument("--short", action="store_true", help="the form of make test")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing more after this time (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="folder to work in (the system's temporary one)")
    options = parser.parse_args(argv)
    results = suite.run(options.only, not options.short, options.minutes, options.folder)
    print(suite.table(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, suite.report(results))
    return 1 if any(result.tally.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
