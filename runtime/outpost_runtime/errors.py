"""What can go wrong outside of our own code, and what the caller may do about it.

OutpostError
├── InvalidInputError      change the request, then send it again
├── NotFoundError          name something that exists
├── UnsupportedError       this model or build cannot do that, ever
├── BusyError              the same request may succeed later
├── DeadlineError          the caller's time ran out
├── UnavailableError       this model or server is closing or closed
├── BundleError            the bundle is damaged, incomplete or foreign: get another
├── StoreError             the store on this device cannot be used as asked
├── TrustError             what came is not signed, not newer or not for this box: use nothing of it
├── FetchError             a source failed: go on later, or from another source
├── ExecutionError         the model failed while it ran
└── ConfigurationError     change a setting or an option

A broken rule of our own code is an ``AssertionError``, never one of these.
"""


class OutpostError(Exception):
    """The world is not as it should be.

    Args:
        message: One sentence that names the thing and what is wrong with it.
        hint: What to do next, one sentence; shown below the message by commands.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} {self.hint}"


class InvalidInputError(OutpostError):
    """The request itself is wrong: change it."""


class NotFoundError(OutpostError):
    """The named thing is not here."""


class UnsupportedError(OutpostError):
    """This model or this build cannot do what was asked."""


class BusyError(OutpostError):
    """There is no room now; the same request may succeed later.

    Args:
        retry_after: Seconds after which it is worth trying, or None where nobody knows.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class DeadlineError(OutpostError):
    """The caller's deadline passed before the work was done."""


class UnavailableError(OutpostError):
    """The model or server is closing or closed."""


class BundleError(OutpostError):
    """A bundle is damaged, incomplete or of a format that this build does not know."""


class StoreError(OutpostError):
    """The store on this device cannot be used as asked."""


def unreadable(what: object, error: OSError) -> StoreError:
    """Return what is said where a store, or a part of it, may not be read."""
    return StoreError(
        f"{what} cannot be read: {error.strerror or error}.",
        hint="Run the command as the user whose store it is.",
    )


class TrustError(OutpostError):
    """What came may not be used: unsigned, expired, rolled back, or for another box."""


class FetchError(OutpostError):
    """A source of bytes failed; another source, or the same one later, may do.

    Args:
        retry_after: Seconds after which this source is worth asking again, infinity where it
            never is in this run, or None where nobody knows.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class ExecutionError(OutpostError):
    """The model failed while it ran."""


class ConfigurationError(OutpostError):
    """A setting or an option is wrong."""
