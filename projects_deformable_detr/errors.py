"""Exceptions of the project."""


class UserError(ValueError):
    """Raised for invalid user input.

    The message names the file, record or config key, and the remedy. Command lines print it without a traceback.
    """


class ArgumentError(ValueError):
    """Raised for an invalid argument of a function or class below ``config/``.

    Attributes:
        argument: name of the argument; ``config/`` replaces it with the config key.
        problem: rest of the message, such as ``"must be in [0, 1], got 2"``.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, str]]:
        return type(self), (self.argument, self.problem)
