"""What can go wrong with a job, each as one sentence a person can act on, with the exit code it ends in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TokLossError(Exception):
    """Base of the errors a user sees: `str(error)` is the sentence, `detail` what `--verbose` adds."""

    exit_code = 1

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class JobFailed(TokLossError):
    """The job failed while it was running; the same command goes on where it stopped."""

    exit_code = 1


class StorageFailed(JobFailed):
    """Storage is out of reach, refuses, or went on failing after several tries."""


class PassFailed(JobFailed):
    """Ray gave up, or lost what it needs; another pass over the missing shards may do better."""


class Refused(TokLossError):
    """Wrong arguments, input, model or output, found before any work."""

    exit_code = 2


class TooManyBadRows(TokLossError):
    """More rows could not be scored than `--max-error-rate` allows; all good rows are committed."""

    exit_code = 3


@contextmanager
def before_work() -> Iterator[None]:
    """What fails before any work is done is a refusal."""
    try:
        yield
    except JobFailed as error:
        raise Refused(str(error), error.detail) from None


class Interrupted(TokLossError):
    """A signal stopped the job (130 for SIGINT, 143 for SIGTERM); what is committed stays."""

    def __init__(self, message: str, exit_code: int, detail: str = "") -> None:
        super().__init__(message, detail)
        self.exit_code = exit_code
