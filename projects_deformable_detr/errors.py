"""The error that a person can mend."""


class UserError(ValueError):
    """Input that cannot be used: the message names the file, record or key, and what to do.

    ``train_net.py`` prints it without a traceback.
    """
