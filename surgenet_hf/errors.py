"""Errors that a user can fix. Only these end a command with their message and without a traceback."""


class UserError(ValueError):
    """A mistake in arguments, data, or files. The message says what was found, what was expected, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist, or lacks a file that it must hold."""


class UnavailableError(UserError, OSError):
    """The Hub cannot be reached or refuses a request, or a file cannot be read or written."""
