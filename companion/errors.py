"""Errors meant for the person at the keyboard: one line that says what was expected, found, and to be done."""


class CompanionError(Exception):
    """A problem the user can mend; the command line prints it as one line and exits with 2."""
