"""What the command lines share: errors as one line, exit codes, ``key=value`` arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..errors import Ewa3dError


def run_command(main: Callable[[], None], when_interrupted: str = "interrupted") -> None:
    """Run a tool. An `Ewa3dError` is one line on stderr and exit code 2; Ctrl-C exits with 130; the rest is a bug."""
    try:
        main()
    except Ewa3dError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(when_interrupted, file=sys.stderr)
        sys.exit(130)


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the examples' lines."""
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
