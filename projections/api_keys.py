"""API keys: made, shown once, checked and revoked (contract row F1).

A key is the text `hw_<id>_<secret>`. The id is public and finds the row; the secret has 256 random bits, and only its
SHA-256 is stored. The table is not a projection of the log: its migration says why.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import asyncpg

from projections.db import Pool, database_errors
from projections.queries import iso
from schemas.errors import InvalidInputError, NotFoundError
from schemas.ids import check_tenant_id, new_id

Scope = Literal["submit", "read", "admin"]
"""submit: tasks in, cancel them, clear sessions. read: everything that a tenant may see. admin: both, and what changes
how a tenant is run, such as redriving dead letters."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_NAME_CHARS = 100

_KEY = re.compile(r"hw_([0-9a-f]{24})_([A-Za-z0-9_-]{43})")
_NO_SECRET = bytes(32)
_COLUMNS = "id, tenant, name, scopes, created_at, revoked_at"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `tenant_id` is None for an operator's, which is good for every tenant."""

    key_id: str
    tenant_id: str | None
    name: str
    scopes: frozenset[str]
    created_at: datetime
    revoked_at: datetime | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether it may be used for `scope`; `admin` includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.key_id,
            "tenant": self.tenant_id,
            "name": self.name,
            "scopes": [scope for scope in SCOPES if scope in self.scopes],
            "created_at": iso(self.created_at),
            "revoked_at": iso(self.revoked_at),
        }


async def create_key(pool: Pool, tenant_id: str | None, scopes: Iterable[str], name: str = "") -> tuple[ApiKey, str]:
    """Make a key. Returns it with its text, which cannot be had again.

    Raises:
        InvalidInputError: a scope is unknown or none is given, the tenant id is not allowed, or a key without a
            tenant is not an admin's.
    """
    wanted = frozenset(scopes)
    if unknown := sorted(wanted - set(SCOPES)):
        raise InvalidInputError(f"scope {unknown[0]!r} is not known: choose from {', '.join(SCOPES)}")
    if not wanted:
        raise InvalidInputError(f"a key needs a scope: choose from {', '.join(SCOPES)}")
    if tenant_id is not None:
        check_tenant_id(tenant_id)
    elif "admin" not in wanted:
        raise InvalidInputError("a key without a tenant is an operator's: name a tenant, or give it the scope admin")
    if len(name) > MAX_NAME_CHARS or not (name.isprintable() or name == ""):
        raise InvalidInputError(f"a key's name has at most {MAX_NAME_CHARS} printable characters")
    key_id, secret = new_id(), secrets.token_urlsafe(32)
    with database_errors():
        row = await pool.fetchrow(
            "INSERT INTO api_keys (id, tenant, name, scopes, secret_sha256) VALUES ($1, $2, $3, $4, $5) "
            f"RETURNING {_COLUMNS}",
            key_id,
            tenant_id,
            name,
            sorted(wanted),
            _hash(secret),
        )
    assert row is not None
    return _key(row), f"hw_{key_id}_{secret}"


async def list_keys(pool: Pool, tenant_id: str | None = None) -> list[ApiKey]:
    """All keys, or one tenant's, the oldest first; revoked ones too."""
    with database_errors():
        rows = await pool.fetch(
            f"SELECT {_COLUMNS} FROM api_keys WHERE $1::text IS NULL OR tenant = $1 ORDER BY created_at, id", tenant_id
        )
    return [_key(row) for row in rows]


async def revoke_key(pool: Pool, key_id: str) -> ApiKey:
    """Make a key useless, at once and for good. Revoking it again changes nothing. Raises `NotFoundError`."""
    with database_errors():
        row = await pool.fetchrow(
            f"UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING {_COLUMNS}", key_id
        )
    if row is None:
        raise NotFoundError(f"there is no key {key_id[:80]!r}: 'headwater keys list' shows their ids")
    return _key(row)


async def authenticate(pool: Pool, text: str) -> ApiKey | None:
    """The key that `text` is, or None if it is malformed, unknown, wrong or revoked."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    with database_errors():
        row = await pool.fetchrow(f"SELECT {_COLUMNS}, secret_sha256 FROM api_keys WHERE id = $1", match[1])
    # Compared also when there is no such key, and in constant time: how long it takes tells nothing.
    same = hmac.compare_digest(_hash(match[2]), _NO_SECRET if row is None else row["secret_sha256"])
    return _key(row) if row is not None and same and row["revoked_at"] is None else None


async def is_active(pool: Pool, key_id: str) -> bool:
    """Whether a key that was good before still is."""
    with database_errors():
        found = await pool.fetchval("SELECT true FROM api_keys WHERE id = $1 AND revoked_at IS NULL", key_id)
    return found is not None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(row["id"], row["tenant"], row["name"], frozenset(row["scopes"]), row["created_at"], row["revoked_at"])
