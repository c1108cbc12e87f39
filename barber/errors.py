"""The exceptions for errors that the user can correct."""


class UserError(Exception):
    """An error that the user can correct.

    The message is one sentence: what was given, what is allowed, what to do. Front ends show it without a
    traceback; every other exception is a defect of this project and is shown with its traceback.
    """


class Unavailable(UserError):
    """Data that cannot be used.

    Attributes:
        reason: why, and what to do, without the name of the data, for one sentence about several data sets.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, for use in a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
