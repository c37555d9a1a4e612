"""Which other sites' scripts may use the API in the name of a tenant's users."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from libs.common.errors import Invalid
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.api.deps import CanReadTenants, CanWriteTenants, InTransaction
from services.gateway.domain.origin import LONGEST
from services.gateway.usecases import origins as usecases

router = APIRouter(prefix="/api/v1/cors-origins", tags=["tenants"])

Origin = Annotated[str, Field(max_length=LONGEST, examples=["https://portal.plant.example"])]


class OriginsIn(Body):
    """All of the tenant's origins."""

    origins: Annotated[list[Origin], Field(max_length=usecases.MOST)]


class OriginsOut(Out):
    """The tenant's origins, sorted. The installation may have others besides."""

    origins: Annotated[list[str], Field(examples=[["https://portal.plant.example"]])]


@router.get("")
async def get_cors_origins(who: CanReadTenants, store: InTransaction) -> OriginsOut:
    """Return the other sites whose scripts may use the API in the name of your users."""
    return OriginsOut(origins=await store.cors_origins.all())


@router.put("", responses=problems(Invalid))
async def replace_cors_origins(
    body: OriginsIn, who: CanWriteTenants, store: InTransaction, now: Now
) -> OriginsOut:
    """Let the scripts of these sites use the API in the name of your users, and of no others.

    It holds within seconds, for live connections as well.
    """
    return OriginsOut(origins=await usecases.replace(store, body.origins, at=now))
