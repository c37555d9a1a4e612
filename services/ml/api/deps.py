"""What the routes of ml ask for."""

from typing import Annotated

from fastapi import Depends

from libs.common.auth.permission import Permission
from libs.common.auth.principal import Principal
from libs.common.http.doors import transaction
from services.ml.store.store import MlStore

InTransaction = Annotated[MlStore, Depends(transaction, scope="function")]
CanRead = Annotated[Principal, Depends(Permission("ml:read"))]
CanWrite = Annotated[Principal, Depends(Permission("ml:write"))]
