"""The one error tree. The type decides the outcome: refuse the request, fail the task, or retry."""

from typing import Literal

UnreadableReason = Literal[
    "unknown_type",
    "unknown_version",
    "missing_field",
    "no_task",
    "malformed_envelope",
    "malformed_body",
    "not_text",
    "not_storable",
    "other",
]
"""Why a log entry cannot be read. `missing_field` and `no_task`: it was not written by Headwater; `malformed_envelope`:
an id, chain, priority or time breaks a rule; `not_text`: not UTF-8, or a NUL character; `not_storable`: PostgreSQL
refuses one of its values; `other`: archived by a version that did not say why."""


class HeadwaterError(Exception):
    """Base of every error that Headwater raises on purpose. Its text says what to do about it."""


def words_of(error: BaseException) -> str:
    """An error's text, as it can be stored: whatever the error is, and whatever bytes are in it."""
    try:
        text = str(error)
    except Exception:
        text = "(it has no text)"
    return text.encode(errors="backslashreplace").decode()


class InvalidInputError(HeadwaterError, ValueError):
    """The caller's input breaks a rule; nothing was written. Refuse the request."""


class TenantMismatchError(HeadwaterError):
    """An event or key of one tenant was used with another tenant's identity. Nothing was read or written."""


class AccessDeniedError(HeadwaterError):
    """An API key is missing, not known or revoked, or it may not do this. Use another one."""


class UnreadableEventError(HeadwaterError):
    """A log entry cannot be understood: `reason` says in a word why, the text names the culprit."""

    def __init__(self, text: str, reason: UnreadableReason = "other") -> None:
        super().__init__(text)
        self.reason = reason


class IdempotencyConflictError(HeadwaterError):
    """An idempotency key was used again, but for a different task. Nothing was written."""


class TaskFailedError(HeadwaterError):
    """A task that was waited for failed or was cancelled. `outcome` is its `TaskOutcome`."""

    def __init__(self, text: str, outcome: object) -> None:
        super().__init__(text)
        self.outcome = outcome


class HandoffRejectedError(HeadwaterError):
    """A handoff was rejected. `result` is its `HandoffResult`, with the reasons."""

    def __init__(self, text: str, result: object) -> None:
        super().__init__(text)
        self.result = result


class StaleLeaseError(HeadwaterError):
    """The lease under which a write was tried is no longer held (I2). Nothing was written; drop the work."""


class NotFoundError(HeadwaterError):
    """What was asked for does not exist for this tenant."""


class DeviationError(HeadwaterError):
    """Two accounts of the same costs differ by more than the tolerance that was given."""


class ConfigurationError(HeadwaterError):
    """Settings, servers and code do not fit together. Stop and tell the operator."""


class SettingError(ConfigurationError):
    """A setting, or an option in its place, has a value that cannot be used. The caller has to give another one."""


class InputSchemaError(HeadwaterError):
    """A task's data or a handoff's content breaks the input schema of an agent's capability. The run fails."""


class OutputSchemaError(HeadwaterError):
    """An agent's result breaks the output schema of its capability. The run fails."""


class BudgetExceededError(HeadwaterError):
    """A task with a budget has spent it, or would ask a model that has no price. The request was not sent."""


class ProviderError(HeadwaterError):
    """An LLM request failed for good after every retry and fallback. The agent's run fails."""


class StructuredOutputError(ProviderError):
    """A model's answer did not have the form that was asked for, and its repair did not either."""


class UnavailableError(HeadwaterError):
    """Redis or PostgreSQL cannot be reached. Try again later; nothing accepted is lost."""
