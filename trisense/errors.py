"""The one exception that speaks to the user."""


class BadInput(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file, key or value, says what was expected and what to do. The command
    line prints it without a traceback and exits with code 2; the server answers it with status 400.
    """
