"""What can go wrong with a job, each as one sentence a person can act on, with the exit code it ends in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def first_sentence(error: BaseException) -> str:
    """The first line of what an exception says, with the next one where it ends in a colon; else its type's name."""
    first, *others = (str(error).strip() or type(error).__name__).split("\n")
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


class TokLossError(Exception):
    """Base class of the errors a user sees.

    Attributes:
        exit_code: the exit code the command ends with: 1, 2, 3, 130 or 143.
        detail: what `--verbose` adds, such as a traceback; may be empty.

    Example:
        >>> from tokloss_ray import ScoreConfig, TokLossError, score
        >>> try:
        ...     score(ScoreConfig(model="my-model", input="nowhere.jsonl", output="out"))
        ... except TokLossError as error:
        ...     print(error, error.exit_code)
        no input: nowhere.jsonl does not exist 2
    """

    exit_code = 1

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class JobFailed(TokLossError):
    """The job failed while running; run it again to resume after the committed shards."""

    exit_code = 1


class StorageFailed(JobFailed):
    """Storage is out of reach, refuses, or still fails after several attempts."""


class PassFailed(JobFailed):
    """Ray stopped, or lost something it needs; another pass over the missing shards may succeed."""


class Refused(TokLossError):
    """Wrong arguments, input, model or output, found before any work."""

    exit_code = 2


class TooManyBadRows(TokLossError):
    """More rows cannot be scored than `max_error_rate` allows; all good rows are committed."""

    exit_code = 3


@contextmanager
def before_work() -> Iterator[None]:
    """Turn failures into refusals: what fails before any work is done has changed nothing."""
    try:
        yield
    except JobFailed as error:
        raise Refused(str(error), error.detail) from None


class Interrupted(TokLossError):
    """A signal stopped the job (exit code 130 for SIGINT, 143 for SIGTERM); committed shards are kept."""

    def __init__(self, message: str, exit_code: int, detail: str = "") -> None:
        super().__init__(message, detail)
        self.exit_code = exit_code
