"""Errors that a user can mend. Launch scripts print them as one line, without a traceback."""


class SparsecapError(ValueError):
    """Base of all errors that name a file or a field and say what was expected there."""


class ConfigError(SparsecapError):
    """An unknown config key, a value out of range, or two values that contradict each other."""


class DataError(SparsecapError):
    """A missing, truncated or malformed data file, or values in it that cannot be used."""


class InUseError(SparsecapError):
    """A file or folder that another process is writing to."""


class CheckpointError(SparsecapError):
    """A checkpoint that is missing, corrupt, or does not fit the model it is loaded into."""
