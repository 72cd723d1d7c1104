"""What ends a study early."""


class RefusedError(ValueError):
    """A study cannot be done on these data; the text says why, and what to do."""


class OutOfTimeError(RuntimeError):
    """A study has used up its time budget."""
