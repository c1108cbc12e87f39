"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake or a missing thing that the user can mend.

    The message is one sentence: what was given, what is allowed, what to do. Front ends show it as it is,
    without a traceback; every other exception is a defect of this project and keeps its traceback.
    """
