"""How a tenant looks: set by its own admins, and seen by everybody before they log in."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field

from libs.common.errors import Invalid, NotFound
from libs.common.http.access import public
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import CanReadTenants, CanWriteTenants, InTenantOfPath
from services.tenancy.domain.branding import Branding
from services.tenancy.store.brandings import branding_of_slug

router = APIRouter(prefix="/api/v1", tags=["branding"])

Line = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
Colour = Annotated[str, Field(max_length=7, examples=["#0b5cad"])]


class BrandingIn(Body):
    """How a tenant is to look; null: as the installation does."""

    product_name: Line | None = None
    colour_on_light: Colour | None = None
    """Of what stands on white, such as links and buttons; its contrast must be 4.5:1."""
    colour_on_dark: Annotated[str, Field(max_length=7, examples=["#7cc4ff"])] | None = None
    """The same on black."""
    sender_name: Line | None = None
    """Whom its mails are from."""
    email_footer: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] | None = None
    """What its mails end with."""


class BrandingOut(Out):
    """How a tenant looks; null: as the installation does."""

    product_name: str | None
    colour_on_light: str | None
    colour_on_dark: str | None
    sender_name: str | None
    email_footer: str | None


class PublicBrandingOut(Out):
    """What everybody may know of a tenant's look."""

    product_name: str | None
    colour_on_light: str | None
    colour_on_dark: str | None


@router.get("/tenants/{tenant_id}/branding", responses=problems(NotFound))
async def get_branding(tenant_id: UUID, who: CanReadTenants, store: InTenantOfPath) -> BrandingOut:
    """Return how the tenant looks."""
    await store.tenants.get(tenant_id)
    return BrandingOut.model_validate(await store.brandings.get())


@router.put("/tenants/{tenant_id}/branding", responses=problems(NotFound, Invalid))
async def set_branding(
    tenant_id: UUID, body: BrandingIn, who: CanWriteTenants, store: InTenantOfPath, now: Now
) -> BrandingOut:
    """Set how the tenant looks. What is left out is as the installation's."""
    await store.tenants.get(tenant_id)
    branding = Branding(**body.model_dump())
    branding.check()
    await store.brandings.put(branding, at=now)
    return BrandingOut.model_validate(branding)


@router.get("/branding")
@public("the page to log in at looks like the tenant's")
async def get_public_branding(
    request: Request,
    tenant: Annotated[
        str | None,
        Query(max_length=63, description="Its slug. Absent: the first part of the host."),
    ] = None,
    host: Annotated[str, Header(include_in_schema=False)] = "",
) -> PublicBrandingOut:
    """Return how the page looks that one logs in at. For what is nobody's: as the installation."""
    slug = host.partition(".")[0].lower()[:63] if tenant is None else tenant
    branding = await branding_of_slug(request.app.state.engine, slug)
    return PublicBrandingOut.model_validate(branding)
