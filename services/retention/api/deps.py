"""What the routes of retention ask for."""

from typing import Annotated

from fastapi import Depends, Header, Request

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.http.doors import transaction
from services.retention.store.store import RetentionStore
from services.retention.usecases.erasure import Erasure


def _seen_version(
    if_match: Annotated[
        str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
    ] = None,
) -> int | None:
    return int(if_match.strip('"')) if if_match else None


def _erasure(request: Request) -> Erasure:
    erasure: Erasure = request.app.state.erasure
    return erasure


InTransaction = Annotated[RetentionStore, Depends(transaction, scope="function")]
CanRead = Annotated[Principal, Depends(Permission("retention:read"))]
CanWrite = Annotated[Principal, Depends(Permission("retention:write", of_whole_tenant=True))]
SeenVersion = Annotated[int | None, Depends(_seen_version)]
"""The header If-Match, as a version."""
Erasing = Annotated[Erasure, Depends(_erasure)]
"""Has transactions of its own, one for each thing erased."""
