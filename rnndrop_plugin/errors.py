"""Errors of the user's input."""


class InputError(ValueError):
    """A flag, file or checkpoint that cannot be used, said in one line.

    Under fairseq's commands the line is all that is printed, and the exit status is 2 (see compat).
    """
