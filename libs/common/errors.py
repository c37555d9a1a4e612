"""What may go wrong, as kinds: each door (HTTP, bus, job, device protocol) says the same kind in its own way.

AppError
├── Malformed            the bytes could not be read at all
├── Unauthenticated      nobody proved who is asking
├── Forbidden            known, but may not
├── NotFound             no such thing, or not yours: the two are one
├── Conflict             the present state forbids it
│   └── QuotaExceeded    the tenant has as much as its plan allows
├── PreconditionFailed   it changed since you looked
├── TooLarge             more than the limit
├── UnsupportedMedia     a content type we do not read
├── Invalid              well-formed, but wrong; says where
├── TooManyRequests      later, please
│   └── QuotaSpent       the tenant has used up what its plan allows for now
└── Unavailable          something we stand on is away; try again
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in an input: where (a JSON pointer, `?name` for a query parameter) and why."""

    pointer: str
    reason: str


class AppError(Exception):
    """The base of every error that someone outside may be told of.

    `detail` is a sentence for the one who asked; it never holds a secret or an inner name.
    """

    status = 500
    title = "Internal error"
    slug = "internal"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class Malformed(AppError):
    """The input could not be parsed."""

    status = 400
    title = "Malformed input"
    slug = "malformed"


class Unauthenticated(AppError):
    """No credential, or one that is not valid."""

    status = 401
    title = "Not authenticated"
    slug = "unauthenticated"


class Forbidden(AppError):
    """The credential is good, the permission is missing."""

    status = 403
    title = "Not allowed"
    slug = "forbidden"


class NotFound(AppError):
    """No such thing in this tenant."""

    status = 404
    title = "Not found"
    slug = "not-found"


class Conflict(AppError):
    """The state of the thing does not allow it, or it is so already."""

    status = 409
    title = "Conflict"
    slug = "conflict"


class QuotaExceeded(Conflict):
    """The tenant has as much as its plan allows; what is there stays as it is."""

    title = "Quota exceeded"
    slug = "quota-exceeded"


class PreconditionFailed(AppError):
    """It was changed by another since it was read."""

    status = 412
    title = "Precondition failed"
    slug = "precondition-failed"


class TooLarge(AppError):
    """The input is larger than the limit."""

    status = 413
    title = "Too large"
    slug = "too-large"


class UnsupportedMedia(AppError):
    """The content type is not one that is read here."""

    status = 415
    title = "Unsupported media type"
    slug = "unsupported-media-type"


class Invalid(AppError):
    """The input was understood and is wrong; `errors` says where."""

    status = 422
    title = "Invalid input"
    slug = "invalid"


class TooManyRequests(AppError):
    """A limit was reached; `retry_after_s` says when to come again."""

    status = 429
    title = "Too many requests"
    slug = "too-many-requests"


class QuotaSpent(TooManyRequests):
    """The tenant has used up what its plan allows for now; `retry_after_s` says when there is more."""

    title = "Quota spent"
    slug = "quota-spent"


class Unavailable(AppError):
    """Something this stands on is away for now; nothing was done."""

    status = 503
    title = "Unavailable"
    slug = "unavailable"


def invalid(pointer: str, reason: str) -> Invalid:
    """Return an Invalid with one fault, which is what most checks find."""
    return Invalid(f"{pointer}: {reason}", errors=[FieldError(pointer, reason)])
