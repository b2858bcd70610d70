"""Every error that a person or a service meets: what was expected, what was found, what to do."""

from __future__ import annotations

REASON_LIMIT = 300
"""Characters of a server's answer that an error passes on: a refusal may repeat a prompt of a megabyte."""


class RecGPTError(Exception):
    """Base of all errors raised on purpose; its text is meant to be read by the person who meets it."""


class DatasetError(RecGPTError):
    """A data set directory, or a source it is made from, is missing, damaged or inconsistent."""


class UnknownUserError(RecGPTError):
    """The data set has no user of this id."""


class NoHistoryError(RecGPTError):
    """The user has no event before the moment of the request."""


class ModelFilesError(RecGPTError):
    """Model files are missing, or their hash is not the recorded one."""


class SettingError(RecGPTError):
    """A setting is unknown or out of its bounds."""


class ServerError(RecGPTError):
    """A model or embedding server could not be started, does not answer, or stopped answering."""


class ServerUnreachableError(ServerError):
    """A server does not answer, timed out, is overloaded or failed (5xx): trying again may help."""


class OutputError(RecGPTError):
    """Results could not be written; what was written before is kept."""


class NoVerdictError(RecGPTError):
    """The judge gave no verdict: a part of it had no valid answer. It never becomes a score."""


class TrainingError(RecGPTError):
    """Training can't go on: a reward is no number."""
