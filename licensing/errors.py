"""The base of every error a rule of this app raises, and the tree of all of them.

    LicensingError
    ├── Refused                  a rule says no; nothing was changed (HTTP 409 unless said otherwise)
    │   ├── catalog.RevisionIsPublished, RevisionIsIncomplete, NotPublished
    │   ├── lifecycle.LicenseNotUsable, AlreadyHeld, NotHeld, TransitionNotAllowed
    │   ├── seats.NoSeatAvailable, SeatIsBlocked, SeatsNotNamed, SeatChurnExceeded, HolderHasSeat
    │   ├── activations.ActivationLimitReached, ActivationChurnExceeded, FingerprintInUse
    │   └── customers.LastOwner
    ├── Invalid                  a value is malformed (HTTP 400), with a pointer to it
    │   ├── keys.Mistyped
    │   └── credentials.ScopeNotAllowed
    ├── Missing                  there is no such thing for this caller (HTTP 404)
    ├── Unauthenticated          the caller is not known (HTTP 401)
    ├── Forbidden                the caller is known and may not (HTTP 403)
    ├── Unavailable              what is needed to answer is away (HTTP 503), with `retry_after_seconds`
    ├── TooMany                  throttled (HTTP 429), with `retry_after_seconds`
    └── crypto.KeyRingError      the key ring lacks what is needed; never shown to clients in detail

Each error lives beside the function that raises it and carries a `code`, the same spelling in API and docs.
"""


class LicensingError(Exception):
    """Base of all errors of this app; `code` is stable, the message is for people."""

    code = "licensing_error"

    def __init__(self, detail: str = "", **facts: object) -> None:
        super().__init__(detail or self.__class__.__doc__ or self.code)
        self.facts = facts

    @property
    def detail(self) -> str:
        return str(self.args[0])


class Refused(LicensingError):
    """The rules do not allow this now; nothing was changed."""

    code = "refused"


class Invalid(LicensingError):
    """A value is malformed."""

    code = "invalid"

    def __init__(self, detail: str = "", *, pointer: str = "", **facts: object) -> None:
        super().__init__(detail, **facts)
        self.pointer = pointer


class Missing(LicensingError):
    """There is no such thing."""

    code = "not_found"


class Unauthenticated(LicensingError):
    """Credentials are missing or not accepted."""

    code = "unauthenticated"


class Forbidden(LicensingError):
    """This caller may not do that."""

    code = "forbidden"


class TooMany(LicensingError):
    """Too many requests; try again later."""

    code = "throttled"

    def __init__(self, detail: str = "", *, retry_after_seconds: int, **facts: object) -> None:
        super().__init__(detail, **facts)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(LicensingError):
    """What is needed to answer is away right now; nothing was decided."""

    code = "unavailable"

    def __init__(self, detail: str = "", *, retry_after_seconds: int = 1, **facts: object) -> None:
        super().__init__(detail, **facts)
        self.retry_after_seconds = retry_after_seconds
