"""Identifiers: which ones are allowed in, and how new and derived ones are made.

Ids are 24 hex digits. A *new* id begins with 48 bits of Unix milliseconds, so text order is age; a *derived* id is
a hash of its cause, so that computing it twice gives the same event and a repeated write can be recognised as one.
"""

import hashlib
import re
import secrets
import time
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

from schemas.errors import InvalidInputError

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_AGENT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
_KEY = re.compile(r"[!-~]{1,200}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}")

# The same few tenants and agents stand in every event: remembering the answer is five times faster than matching.
_is_tenant_id = lru_cache(maxsize=16_384)(_TENANT.fullmatch)
_is_agent_id = lru_cache(maxsize=16_384)(_AGENT.fullmatch)


def new_id() -> str:
    """A fresh, time-ordered id of 24 characters."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def derived_id(*cause: str | int) -> str:
    """The id of what follows from `cause`; the same cause always gives the same 24 characters."""
    return hashlib.blake2b("\x1f".join(map(str, cause)).encode(), digest_size=12).hexdigest()


def check_tenant_id(value: str) -> str:
    """Return `value` if it is a tenant id, else raise `InvalidInputError`.

    A tenant id becomes part of Redis key names, so braces, colons, spaces, control characters and anything
    longer than 63 characters are refused here, where it enters (I8).
    """
    if not isinstance(value, str) or not _is_tenant_id(value):
        raise InvalidInputError(
            f"tenant id {str(value)[:80]!r} is not allowed: use 1 to 63 characters of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return value


def check_agent_id(value: str) -> str:
    """Return `value` if it is an agent id, else raise `InvalidInputError`."""
    if not isinstance(value, str) or not _is_agent_id(value):
        raise InvalidInputError(
            f"agent id {str(value)[:80]!r} is not allowed: use 1 to 63 characters of A-Z, a-z, 0-9, '.', '_' and "
            "'-', beginning with a letter or digit"
        )
    return value


def check_session_id(value: str) -> str:
    """Return `value` if it is a session id (1 to 128 characters, no control characters, no lone surrogates).

    A lone surrogate is how a byte that is not UTF-8 arrives from a command line: it could be written and not read.
    """
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise InvalidInputError(
            f"session id {str(value)[:80]!r} is not allowed: use 1 to 128 characters, none of them a control character"
            " or a byte that is not UTF-8"
        )
    return value


def check_idempotency_key(value: str) -> str:
    """Return `value` if it is an idempotency key (1 to 200 printable ASCII characters, no spaces)."""
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise InvalidInputError(
            f"idempotency key {str(value)[:80]!r} is not allowed: use 1 to 200 printable ASCII characters, no spaces"
        )
    return value


TenantId = Annotated[str, AfterValidator(check_tenant_id)]
AgentId = Annotated[str, AfterValidator(check_agent_id)]
SessionId = Annotated[str, AfterValidator(check_session_id)]
IdempotencyKey = Annotated[str, AfterValidator(check_idempotency_key)]
