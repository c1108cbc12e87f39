"""The one exception for what a user can correct."""


class UserError(Exception):
    """A mistake or a missing thing that the user can correct.

    The message is one sentence: what was given, what is allowed, what to do. Front ends show it as it is,
    without a traceback; every other exception is a defect of this project and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, to be put into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
