"""Errors that a user can fix."""


class UserError(ValueError):
    """A mistake in arguments, data, or files. Commands print its message without a traceback."""
