"""The commands of `python -m cupy_flash`: one module a command, each with `add_arguments` and `run`."""


class UserError(Exception):
    """Something the user can put right: printed as one line, without a traceback."""

    status = 1


class Unavailable(UserError):
    """This machine lacks what the command is for."""

    status = 2
