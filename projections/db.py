"""PostgreSQL: the pool, the migrations, and the tenant's read-only door."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from schemas.errors import ConfigurationError, SettingError, UnavailableError
from schemas.ids import check_tenant_id

logger = structlog.get_logger(__name__)

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    # asyncpg's classes are generic in its stubs only.
    Pool = asyncpg.Pool
    Connection = PoolConnectionProxy

SCHEMA = "headwater"
_MIGRATION_LOCK = 0x6865_6164  # "head"


_AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down or restarted under a query
    asyncpg.InsufficientResourcesError,  # too many connections, a full disk
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections
    # What asyncpg says of a connection that was cut while it was being given back.
    asyncpg.InternalClientError,
)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turns a lost or refused connection to PostgreSQL into `UnavailableError`."""
    try:
        yield
    except _AWAY as error:
        raise UnavailableError(f"PostgreSQL cannot be reached: {error}") from error


async def connect(database_url: str, *, max_size: int = 10, min_size: int = 1) -> Pool:
    """Open a pool; with `min_size` 0, one that connects when it is first used.

    Raises:
        UnavailableError: nobody answers.
        ConfigurationError: the URL is none, or the login is refused.
    """
    try:
        return await asyncpg.create_pool(
            database_url,
            min_size=min_size,
            max_size=max_size,
            server_settings={"search_path": SCHEMA, "TimeZone": "UTC", "jit": "off", "application_name": "headwater"},
        )
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise ConfigurationError(f"PostgreSQL refused the login: {error}. Is DATABASE_URL right?") from error
    except ValueError as error:
        # The text may have a password: asyncpg's does not repeat the URL.
        raise SettingError(f"DATABASE_URL is not a PostgreSQL URL that can be used: {error}") from error
    except (OSError, asyncpg.PostgresError) as error:
        raise UnavailableError(
            f"PostgreSQL cannot be reached: {error}. Is it running, is DATABASE_URL right?"
        ) from error


async def create_database(database_url: str) -> str:
    """Create an empty database beside the one at `database_url`, for a test. Returns its URL."""
    name = f"test_{os.urandom(6).hex()}"
    admin = await asyncpg.connect(database_url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
    finally:
        await admin.close()
    parts = urlsplit(database_url)
    # An empty host (`postgresql://user@/name?host=/socket`) must stay as it is written.
    return urlunsplit(parts._replace(path=f"/{name}"))


async def drop_database(database_url: str, dropped_url: str) -> None:
    """Drop a database that `create_database` made, with whoever is still connected to it."""
    admin = await asyncpg.connect(database_url)
    try:
        await admin.execute(f'DROP DATABASE "{urlsplit(dropped_url).path[1:]}" WITH (FORCE)')
    finally:
        await admin.close()


async def migrate(pool: Pool) -> list[str]:
    """Apply the numbered migrations that the database lacks, in order. Safe to call from many processes at once.

    Raises:
        ConfigurationError: an applied migration differs from the code's, the database is newer than the code, or the
            login may not create what is needed.
    """
    ours = {
        file.name: file.read_text()
        for file in sorted(resources.files("projections").joinpath("migrations").iterdir(), key=lambda f: f.name)
        if file.name.endswith(".sql")
    }
    applied_now = []
    async with pool.acquire() as conn:
        await conn.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        try:
            async with conn.transaction():
                # Asked first: IF NOT EXISTS wants the right to create it, even when it is there.
                if not await conn.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
                    await conn.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                await conn.execute(
                    "CREATE TABLE IF NOT EXISTS schema_migrations "
                    "(name text PRIMARY KEY, sha256 text NOT NULL, at timestamptz NOT NULL DEFAULT now())"
                )
            rows = await conn.fetch("SELECT name, sha256 FROM schema_migrations")
            applied: dict[str, str] = {row["name"]: row["sha256"] for row in rows}
            if unknown := sorted(set(applied) - set(ours)):
                raise ConfigurationError(
                    f"the database is newer than this code (it has {unknown[-1]}): upgrade Headwater"
                )
            for name, sql in ours.items():
                sha = hashlib.sha256(sql.encode()).hexdigest()
                if name in applied:
                    if applied[name] != sha:
                        raise ConfigurationError(f"migration {name} was changed after it was applied: restore it")
                    continue
                async with conn.transaction():
                    await conn.execute(sql)
                    await conn.execute("INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)", name, sha)
                applied_now.append(name)
                logger.info("migrated", migration=name)
        except asyncpg.InsufficientPrivilegeError as error:
            raise ConfigurationError(
                f"the PostgreSQL login may not prepare the database: {error}. Let it create a schema and the role "
                "headwater_reader, or create both and grant the role to it"
            ) from error
        finally:
            await conn.execute("SELECT pg_advisory_unlock($1)", _MIGRATION_LOCK)
    return applied_now


@contextlib.asynccontextmanager
async def tenant_connection(pool: Pool, tenant_id: str) -> AsyncIterator[Connection]:
    """A read-only transaction that can see one tenant's rows only, whatever its queries say (I8)."""
    with database_errors():
        async with pool.acquire() as conn, conn.transaction(readonly=True):
            await conn.execute("SET LOCAL ROLE headwater_reader")
            await conn.execute("SELECT set_config('headwater.tenant', $1, true)", check_tenant_id(tenant_id))
            yield conn


async def is_reachable(pool: Pool) -> bool:
    """Does PostgreSQL answer now?"""
    try:
        return bool(await pool.fetchval("SELECT true", timeout=2))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
