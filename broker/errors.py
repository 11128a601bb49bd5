"""The errors Trifid raises, each for one decision that a caller can take."""


class TrifidError(Exception):
    """Base of all errors that Trifid raises on purpose."""


class DecodeError(TrifidError):
    """Bytes that are not an alert; the message says why, and becomes the dead letter's reason."""


class ConfigurationError(TrifidError):
    """A setting, file or model that the service cannot start with."""


class DependencyUnavailableError(TrifidError):
    """Redis, Triton or Kafka is unavailable; the same call may succeed later."""


class InferenceError(TrifidError):
    """The model or its server refuses a batch; the same call would be refused again."""


class InputFileError(TrifidError):
    """A file named by the user that cannot be read as what it was given for."""


class DeadLetterLimitError(TrifidError):
    """Too many alerts would become dead letters: more likely the service or the stream is at fault than the alerts."""


class ModelCheckError(TrifidError):
    """A model version that answers otherwise than the reference implementation, or cannot be asked."""
