"""What stops the work without being a bug: bad input, and the loss of another process."""


class InputError(ValueError):
    """Bad input, told in one line: what was wrong, the value seen, what to do.

    The command line prints the message and exits with 2. Everything else that goes wrong exits with 1.
    """


class LostProcess(BaseException):
    """Another process of a shared run is gone; what was finished is kept. The command line exits with 1.

    Like KeyboardInterrupt it comes at any moment, so that no handler of other errors may take it for its own.
    """

    def __init__(self) -> None:
        super().__init__(
            "another process of this run was lost; what was finished is kept, and the same command resumes"
        )
