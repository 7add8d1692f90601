"""The one error that is the user's to mend."""


class UserError(Exception):
    """A mistake in parameters, data or environment.

    The message names the key, file or row and what to do about it. The command lines print it without a
    traceback and exit with code 1.
    """
