"""What the tenant lets its devices do, over HTTP."""

from fastapi import APIRouter

from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import CanReadDevices, CanWriteForAllDevices, InTransaction
from services.ingest.domain.policy import DevicePolicy
from services.ingest.usecases import policies as usecases

router = APIRouter(prefix="/api/v1/devices/policy", tags=["devices"], route_class=IdempotentRoute)


class PolicyIn(Body):
    """The policy to set."""

    plain_coap: bool
    """Whether devices may speak CoAP with neither OSCORE nor DTLS."""


class PolicyOut(Out):
    """The tenant's policy for its devices."""

    plain_coap: bool


@router.get("")
async def get_device_policy(who: CanReadDevices, store: InTransaction) -> PolicyOut:
    """Return what the tenant lets its devices do."""
    return PolicyOut.model_validate(await store.policies.get())


@router.put("")
async def set_device_policy(
    body: PolicyIn, who: CanWriteForAllDevices, store: InTransaction, now: Now
) -> PolicyOut:
    """Set what the tenant lets its devices do. What is not allowed any more ends within seconds."""
    policy = DevicePolicy(plain_coap=body.plain_coap)
    await usecases.change(store, policy, at=now)
    return PolicyOut.model_validate(policy)
