"""What the command lines share: errors as one line, exit codes, ``key=value`` arguments."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ..errors import Ewa3dError, Interrupted


def run_command(main: Callable[[], None], when_interrupted: str = "interrupted") -> None:
    """Run a tool. An `Ewa3dError` is one line on stderr and exit code 2, Ctrl-C and SIGTERM are one and 128 + the
    signal's number; the rest is a bug."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
        _leave_group()
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Ewa3dError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        signum, said = signal.SIGINT.value, None
        if isinstance(interrupt, Interrupted):
            signum, said = interrupt.signum, interrupt.message
        if line := when_interrupted if said is None else said:
            print(line, file=sys.stderr)
        sys.exit(128 + signum)


def _leave_group() -> None:
    """Leave the group of processes, where there is one: its threads can abort an interpreter that ends with them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the examples' lines."""
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
