"""The one exception that means "you can mend this": command lines print it as one line and exit with code 2."""


class Ewa3dError(Exception):
    """What is wrong, where, and the mend, in one line. For bad input (a file, a value, a folder), never for a bug."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
