"""The one exception a reader is meant to see."""


class UserError(Exception):
    """Something the reader can mend. Its text is one clear sentence; the command line prints it and exits 2."""
