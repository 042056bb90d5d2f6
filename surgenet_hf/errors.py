"""Errors that a user can fix. Commands print their message without a traceback."""


class UserError(ValueError):
    """Error in arguments, data, or files. The message states what was found, what was expected, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """Error for a file or folder that does not exist, or for a folder that lacks a required file."""


class UnavailableError(UserError, OSError):
    """Error for a Hub that is unreachable or refuses a request, or for a file that cannot be read or written."""
