"""Mistakes that a user can make and mend."""


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one line: it names the argument, says what was wrong and what would be right. The command-line
    programs print it without a traceback and exit with status 2.
    """
