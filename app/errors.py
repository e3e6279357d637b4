"""The errors every door translates into its own protocol (OperationOutcome, OAuth, problem+json, DIMSE).

The codes are those of FHIR R4 `issue-type`; the statuses are HTTP's (RFC 9110).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Issue:
    """One fault: FHIR issue-type code, a sentence without patient data, and the FHIRPath of the element."""

    code: str
    diagnostics: str
    expression: str | None = None
    severity: str = "error"


class IsocenterError(Exception):
    """Something went wrong inside the server."""

    status = 500
    code = "exception"

    def __init__(self, diagnostics: str | None = None, *, issues: tuple[Issue, ...] = ()) -> None:
        """`diagnostics` is shown to the caller; without it the class's own sentence is."""
        self.issues = issues or (Issue(self.code, diagnostics or (type(self).__doc__ or "")),)
        super().__init__("; ".join(issue.diagnostics for issue in self.issues))


class BadRequest(IsocenterError):
    """The request cannot be understood."""

    status, code = 400, "invalid"


class NotSupported(IsocenterError):
    """This server does not offer that."""

    status, code = 404, "not-supported"


class Unauthenticated(IsocenterError):
    """A valid access token is needed."""

    status, code = 401, "login"


class Forbidden(IsocenterError):
    """The grant does not cover this."""

    status, code = 403, "forbidden"


class NotFound(IsocenterError):
    """There is no such thing here."""

    status, code = 404, "not-found"


class MethodNotAllowed(IsocenterError):
    """That method is not offered at this address."""

    status, code = 405, "not-supported"

    def __init__(self, diagnostics: str | None = None, *, allow: Iterable[str] = ()) -> None:
        """`allow` are the methods that are."""
        super().__init__(diagnostics)
        self.allow = ", ".join(sorted(allow))


class NotAcceptable(IsocenterError):
    """None of the accepted media types can be produced."""

    status, code = 406, "not-supported"


class TooSlow(IsocenterError):
    """The request did not arrive in time."""

    status, code = 408, "timeout"


class Conflict(IsocenterError):
    """The request contradicts what is stored."""

    status, code = 409, "conflict"


class Gone(IsocenterError):
    """It was here and has been deleted."""

    status, code = 410, "deleted"


class PreconditionFailed(IsocenterError):
    """The version named is not the current one."""

    status, code = 412, "conflict"


class TooLarge(IsocenterError):
    """The request is larger than the limit."""

    status, code = 413, "too-long"


class UnsupportedMediaType(IsocenterError):
    """That content type is not accepted here."""

    status, code = 415, "not-supported"


class Unprocessable(IsocenterError):
    """The content breaks a rule."""

    status, code = 422, "processing"


class Unavailable(IsocenterError):
    """Something this answer needs cannot be reached now."""

    status, code = 503, "transient"

    def __init__(self, diagnostics: str | None = None, *, retry_after: int = 5) -> None:
        """`retry_after` is in whole seconds."""
        super().__init__(diagnostics)
        self.retry_after = retry_after


class TooMany(Unavailable):
    """One caller asks for more at once than it may (RFC 6585 section 4)."""

    status, code = 429, "throttled"


class ArchiveUnavailable(Unavailable):
    """The image archive does not answer."""


class ArchiveFailed(ArchiveUnavailable):
    """The image archive answers, but not to this."""


class ConfigurationError(IsocenterError):
    """The configuration cannot be used; the message says what to do."""


def place(error: BaseException) -> str:
    """File and line of a failure, for logs: a message may hold patient data, a place does not."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/app/')[2]}:{trace.tb_lineno}" if trace else ""
