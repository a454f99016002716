"""The one exception that means "what you gave cannot be measured, and this is what to change"."""


class InputError(ValueError):
    """Bad input, told in one line: what was wrong, the value seen, what to do.

    The command line prints the message and exits with 2. Everything else that goes wrong is a bug and exits with 1.
    """
