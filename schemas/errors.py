"""The one error tree. The type decides the outcome: refuse the request, fail the task, or retry."""


class HeadwaterError(Exception):
    """Base of every error that Headwater raises on purpose. Its text says what to do about it."""


class InvalidInputError(HeadwaterError, ValueError):
    """The caller's input breaks a rule; nothing was written. Refuse the request."""


class TenantMismatchError(HeadwaterError):
    """An event or key of one tenant was used with another tenant's identity. Nothing was read or written."""


class UnreadableEventError(HeadwaterError):
    """A log entry cannot be understood: fields are missing, or its type or version is not known here."""


class IdempotencyConflictError(HeadwaterError):
    """An idempotency key was used again, but for a different task. Nothing was written."""


class StaleLeaseError(HeadwaterError):
    """The lease under which a write was tried is no longer held (I2). Nothing was written; drop the work."""


class NotFoundError(HeadwaterError):
    """What was asked for does not exist for this tenant."""


class ConfigurationError(HeadwaterError):
    """Settings, servers and code do not fit together. Stop and tell the operator."""


class ProviderError(HeadwaterError):
    """An LLM request failed for good after every retry and fallback. The agent's run fails."""


class UnavailableError(HeadwaterError):
    """Redis or PostgreSQL cannot be reached. Try again later; nothing accepted is lost."""
