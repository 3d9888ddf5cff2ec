"""What storage raises: which of it is worth another try, and one sentence for each kind.

Exceptions are told apart by type and by the service's error code, never by their text: some services leave it empty,
and it may quote what nobody should read in a log. botocore's types are matched by name, so that nothing is imported
that the job does not use.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tokloss_ray.errors import StorageFailed, TokLossError

T = TypeVar("T")

PREFLIGHT_TRIES = 2
"""A person is waiting for the preflight. A job at work has `storage_tries`."""
_LONGEST_PAUSE = 10.0

_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_SETTINGS = {"ProfileNotFound", "InvalidRegionError", "InvalidConfigError", "ConfigParseError", "NoRegionError"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ProxyConnectionError",
    "ClientConnectorError",
    "ConnectError",
}
_BROKEN_OFF = {
    "ReadTimeoutError", "FSTimeoutError", "TimeoutError", "ClientPayloadError", "HTTPClientError",
    "IncompleteReadError", "ResponseStreamingError", "ConnectionClosedError", "ConnectionError",
    "ServerDisconnectedError", "ClientOSError", "ReadTimeout", "NetworkError", "RemoteProtocolError",
}  # fmt: skip
_BAD_KEYS = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "AuthorizationHeaderMalformed"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_OVERLOADED = {
    "SlowDown", "503", "500", "502", "504", "429", "InternalError", "ServiceUnavailable", "TooManyRequests",
    "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted",
}  # fmt: skip


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of `fs` are paths of this machine."""
    return isinstance(fs, LocalFileSystem)


class Effort:
    """How often a storage operation is tried, and how many were tried again: of one run, or of one stage of a worker.

    It goes with the flow of control (a context variable), and with work that is given to threads in a copy of the
    context: runs that share a process do not share it.
    """

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self._retries = 0
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self) -> Iterator[Effort]:
        """While it lasts, operations are tried and counted here."""
        before = _effort.get()
        _effort.set(self)
        try:
            yield self
        finally:
            _effort.set(before)  # and no token: a generator may end in another context than it began in

    def count(self) -> None:
        """An operation is tried again."""
        with self._lock:
            self._retries += 1

    def take(self) -> int:
        """How many operations were tried again since the last call."""
        with self._lock:
            count, self._retries = self._retries, 0
        return count


_effort: ContextVar[Effort] = ContextVar("tokloss_storage_effort", default=Effort(PREFLIGHT_TRIES))  # noqa: B039 (meant to be shared)


def tries(count: int) -> AbstractContextManager[Effort]:
    """Storage operations are tried so often, for a while, before a transient failure counts as final."""
    return Effort(count).at_work()


def take_retries() -> int:
    """How many operations have been tried again, where this is called from, since the last call."""
    return _effort.get().take()


def attempt(fs: fsspec.AbstractFileSystem, path: str, doing: str, operation: Callable[[], T]) -> T:
    """The result of one whole storage operation, tried again after transient failures, with pauses in between.

    Pauses grow exponentially with full jitter, so that a thousand tasks that were turned away do not come back at once
    (Brooker, "Exponential Backoff And Jitter", 2015). Nothing is retried on a local disk. `doing` is a verb for the
    sentence: read, write, list, delete.

    Raises:
        FileNotFoundError: there is no such file (a missing bucket is another matter).
        StorageFailed: with the cause in one sentence.
    """
    tried, effort = 0, _effort.get()
    while True:
        try:
            return operation()
        except TokLossError:
            raise
        except Exception as error:
            tried += 1
            problem = _problem(fs, path, doing, error)
            if problem is None:
                raise
            sentence, transient = problem
            if transient and tried < effort.tries:
                effort.count()
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 2.0**tried)))
                continue
            again = f" (tried {tried} times)" if tried > 1 else ""
            raise StorageFailed(f"cannot {doing} {display(fs, path)}: {sentence}{again}") from None


@contextmanager
def as_storage_failure(fs: fsspec.AbstractFileSystem, path: str, doing: str) -> Iterator[None]:
    """The same sentences for an operation that cannot be repeated as a whole."""
    try:
        yield
    except TokLossError:
        raise
    except Exception as error:
        problem = _problem(fs, path, doing, error)
        if problem is None:
            raise
        raise StorageFailed(f"cannot {doing} {display(fs, path)}: {problem[0]}") from None


def display(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A path as users write it."""
    return path if is_local(fs) else fs.unstrip_protocol(path)


def _problem(fs: fsspec.AbstractFileSystem, path: str, doing: str, error: Exception) -> tuple[str, bool] | None:
    """The sentence for an exception and whether it may pass, or None if it is no matter of storage."""
    if is_local(fs):
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError)) and doing in ("read", "list")
        if missing or not isinstance(error, OSError):
            return None
        return (error.strerror or str(error)).lower(), False
    chain = list(_chain(error))
    names = {cls.__name__ for e in chain for cls in type(e).__mro__}
    code = next((code for e in chain if (code := _code(e))), "")
    if names & _CREDENTIALS:
        return (
            "no complete credentials found (for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE with ~/.aws, or an instance profile)",
            False,
        )
    if names & _SETTINGS or (isinstance(error, ValueError) and "endpoint" in str(error).lower()):
        return "the profile, region or endpoint in the environment or in ~/.aws is wrong", False
    if code in _EXPIRED:
        return "the credentials have expired: renew them and run the same command again", False
    if code in _BAD_KEYS:
        return f"the credentials were rejected ({code})", False
    if code in ("AccessDenied", "401", "403", "AllAccessDisabled") or isinstance(error, PermissionError):
        return "access denied: the credentials lack permission, or are wrong", False
    if code == "NoSuchBucket" or (isinstance(error, FileNotFoundError) and "/" not in path.strip("/")):
        return f"no such bucket: {path.strip('/').split('/')[0]}", False
    if isinstance(error, FileNotFoundError):
        return None
    if "SSLError" in names:
        return "no secure connection to the endpoint: is it https, and is its certificate trusted here?", False
    if names & _UNREACHABLE:
        return f"the endpoint{_endpoint()} does not respond", True
    if code in _OVERLOADED:
        return f"the service is overloaded or failing ({code})", True
    if code in ("PreconditionFailed", "412") or "FileExpired" in names:
        return "it changed while it was being read", False
    if names & _BROKEN_OFF:
        return "the service stopped responding", True
    if isinstance(error, OSError) or code:
        return f"the service refused the request ({code or type(error).__name__})", False
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """The service's error code: botocore keeps it in `response`, other clients a status in `status` or `code`, that of
    the hub in its response."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code") or "")
    status = getattr(error, "status", None) or getattr(error, "code", None) or getattr(response, "status_code", None)
    return str(status) if isinstance(status, (int, str)) else ""


def _endpoint() -> str:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return f" {url}" if url and "@" not in url else ""
