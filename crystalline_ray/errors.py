"""Every error a user can meet, in one hierarchy.

The command line prints the message of a `CrystallineError` without a traceback and exits with its `exit_code`: 2 for
input that was refused before work began, 1 for a failure during work. Anything else is a bug and keeps its traceback.
"""


class Stopped(BaseException):
    """A signal ended the program before its work was done; like Ctrl-C, it passes through every `except Exception`.

    The exit code is what a shell reports of a program that the signal killed.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class CrystallineError(Exception):
    """Base of every error this package raises on purpose; the message is written for the user."""

    exit_code = 1


class InputError(CrystallineError):
    """The user's input was refused before any work began."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or value is not allowed; names the field, the value and what is."""


class DataError(InputError):
    """The training or evaluation text cannot be used (missing, empty, unreadable, too short)."""


class TokenizerError(InputError):
    """A tokenizer cannot be trained, loaded or applied to the given text."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or belongs to another model or configuration."""


class DamageError(InputError):
    """A folder that was written whole is so no longer, or was not written by this package; says what is wrong."""


class ResourceError(InputError):
    """The machine lacks something the run needs: disk space, shared memory, main memory."""


class SphereError(CrystallineError):
    """A sphere failed or died during a step; names the sphere, the step and what happens next."""


class DeadlineError(SphereError):
    """A sphere did not answer within its deadline; names the sphere and the step."""


class NonFiniteError(CrystallineError):
    """Losses or gradients stayed infinite or NaN for too many consecutive steps."""
