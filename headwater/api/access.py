"""Who asks, for which tenant, and whether they may. The tenant comes from the key, never from a body."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from headwater.api.problems import ApiProblem
from projections.api_keys import ApiKey, Scope
from schemas.ids import check_tenant_id

TENANT_HEADER = "Headwater-Tenant"
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="A key from `headwater keys create`, such as `hw_…`. It belongs to one tenant, or to an operator.",
)


@dataclass(frozen=True, slots=True)
class Access:
    """A request that may go on. `tenant_id` is None only where an operator may ask about all tenants."""

    key: ApiKey
    tenant_id: str | None


@dataclass(frozen=True, slots=True)
class Caller:
    """A request that may go on, for one tenant."""

    key: ApiKey
    tenant_id: str


def _across(scope: Scope) -> Callable[..., Awaitable[Access]]:
    async def check(
        request: Request,
        named: Annotated[
            str | None,
            Header(
                alias=TENANT_HEADER,
                description="For an operator's key: the tenant that is meant. Any other key has its tenant, and this "
                "must be the same if it is given.",
            ),
        ] = None,
        _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> Access:
        # The guard has authenticated it before anything of the body was read.
        key: ApiKey = request.state.key
        if not key.allows(scope):
            raise ApiProblem(
                403,
                f"this key has the scopes {', '.join(sorted(key.scopes))}, and this needs {scope}: use another key",
                headers={"WWW-Authenticate": f'Bearer realm="headwater", error="insufficient_scope", scope="{scope}"'},
            )
        if key.tenant_id is None:
            return Access(key, None if named is None else check_tenant_id(named))
        if named is not None and named != key.tenant_id:
            raise other_tenant(named, TENANT_HEADER)
        return Access(key, key.tenant_id)

    return check


def _of_one_tenant(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def check(access: Annotated[Access, Depends(_across(scope))]) -> Caller:
        if access.tenant_id is None:
            raise ApiProblem(422, f"an operator's key is good for every tenant: name one in the header {TENANT_HEADER}")
        return Caller(access.key, access.tenant_id)

    return check


def other_tenant(named: str, where: str) -> ApiProblem:
    """The answer to a request that names a tenant that is not the key's."""
    return ApiProblem(403, f"{where} names tenant {named[:80]!r}, which does not match the key's tenant: leave it out")


Submitter = Annotated[Caller, Depends(_of_one_tenant("submit"))]
Reader = Annotated[Caller, Depends(_of_one_tenant("read"))]
Admin = Annotated[Caller, Depends(_of_one_tenant("admin"))]
ReaderOfAll = Annotated[Access, Depends(_across("read"))]
"""Like `Reader`, but an operator may leave the tenant out."""
