"""The errors that regnet raises on purpose: each message names the thing, the cause and the remedy."""


class RegnetError(Exception):
    """Base of every error whose message is meant for the user (exit code 2)."""


class ConfigError(RegnetError):
    """A configuration key is misspelt, missing or out of range."""


class InputError(RegnetError):
    """A file or array given by the user cannot be used as it is."""


class StoreError(RegnetError):
    """A file that regnet wrote earlier is cut short, of another version, or does not fit the settings."""


class OutputError(RegnetError):
    """An output cannot be written: read-only folder, full disk, or a path that is an input."""
