"""What the routes of analytics ask for."""

from typing import Annotated

from fastapi import Depends

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.http.doors import transaction
from services.analytics.store.store import AnalyticsStore

InTransaction = Annotated[AnalyticsStore, Depends(transaction, scope="function")]
CanRead = Annotated[Principal, Depends(Permission("analytics:read"))]
