"""What can go wrong with a job, each as one sentence a person can act on, with the exit code it ends in."""

from __future__ import annotations


class TokLossError(Exception):
    """Base of the errors a user sees: `str(error)` is the sentence, `detail` what `--verbose` adds."""

    exit_code = 1

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class JobFailed(TokLossError):
    """The job failed while it was running; the same command goes on where it stopped."""

    exit_code = 1


class Refused(TokLossError):
    """Wrong arguments, input, model or output, found before any work."""

    exit_code = 2


class TooManyBadRows(TokLossError):
    """More rows could not be scored than `--max-error-rate` allows; all good rows are committed."""

    exit_code = 3


class Interrupted(TokLossError):
    """A signal stopped the job (130 for SIGINT, 143 for SIGTERM); what is committed stays."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
