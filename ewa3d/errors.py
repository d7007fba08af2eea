"""What command lines end with in one line: the exception that means "you can mend this", and that of a signal."""

_MOST = 200  # letters of what is told of a value or an exception


class Ewa3dError(Exception):
    """What is wrong, where, and the mend, in one line. For bad input (a file, a value, a folder), never for a bug."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work: a command line says so in one line and exits with 128 + ``signum``.

    Args:
        signum: which signal.
        message: the line; empty for none, ``None`` for the command line's own.
    """

    def __init__(self, signum: int, message: str | None = None):
        super().__init__(message or "")
        self.signum = signum
        self.message = message


def first_line(error: BaseException) -> str:
    """What an exception says, in one line that is not too long; its type where it says nothing."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0])


def quoted(value: object) -> str:
    """``repr(value)``, for an error: of a file that is broken, a value may be as long as the file."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """``text``, or as much of it as an error may quote."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
