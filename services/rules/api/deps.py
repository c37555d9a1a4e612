"""What the routes of rules ask for."""

from typing import Annotated

from fastapi import Depends

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.http.doors import transaction
from services.rules.store.store import RulesStore

InTransaction = Annotated[RulesStore, Depends(transaction, scope="function")]
CanRead = Annotated[Principal, Depends(Permission("rules:read"))]
CanWrite = Annotated[Principal, Depends(Permission("rules:write"))]
