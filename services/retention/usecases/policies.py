"""What people do with policies; and what becomes of a tenant's data when it is no more."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from libs.common.db.erasure import erase_tenant
from libs.common.errors import PreconditionFailed, invalid
from services.retention.domain.policy import DataType, Policy
from services.retention.store.store import RetentionStore


async def create(
    store: RetentionStore, data_type: DataType, keep_days: int, *, policy_id: UUID, now: datetime
) -> Policy:
    """Make a policy. Raises Conflict if the type of data has one."""
    policy = Policy(
        id=policy_id,
        data_type=data_type,
        keep_days=keep_days,
        version=1,
        created_at=now,
        updated_at=now,
    )
    await store.policies.lock()
    await store.policies.add(policy)
    return policy


async def change(
    store: RetentionStore,
    policy_id: UUID,
    data_type: DataType,
    keep_days: int,
    *,
    version: int | None,
    now: datetime,
) -> Policy:
    """Keep for another time. What is erased already stays so.

    Raises NotFound, Invalid if `data_type` is another, PreconditionFailed if `version` is given and
    not the present one.
    """
    await store.policies.lock()
    policy = await store.policies.get(policy_id)
    _check_version(policy, version)
    if data_type is not policy.data_type:
        raise invalid("#/data_type", f"this policy is for {policy.data_type}; make another")
    changed = replace(policy, keep_days=keep_days, version=policy.version + 1, updated_at=now)
    await store.policies.update(changed)
    return changed


async def delete(store: RetentionStore, policy_id: UUID, *, version: int | None) -> None:
    """Delete a policy; from now on the default holds. Raises NotFound and PreconditionFailed."""
    await store.policies.lock()
    _check_version(await store.policies.get(policy_id), version)
    await store.policies.remove(policy_id)


async def let_go(store: RetentionStore) -> None:
    """Keep a tenant's points no longer than must be, now that it is no more, and nothing else."""
    await store.policies.lock()
    await store.history.close()
    await erase_tenant(store, "retention")


def _check_version(policy: Policy, version: int | None) -> None:
    if version is not None and version != policy.version:
        raise PreconditionFailed(f"the policy is at version {policy.version}, not {version}")
