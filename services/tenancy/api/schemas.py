"""What the bodies of several routes have in common."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from libs.common.email import MAX_LENGTH as LONGEST_EMAIL
from libs.common.http.schemas import Out
from services.tenancy.domain.invitation import Invitation
from services.tenancy.domain.member import Member, MemberStatus

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
Email = Annotated[str, Field(max_length=LONGEST_EMAIL, examples=["ann@plant.example"])]
RoleNames = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=20, examples=[["operator"]]),
]


class UserOut(Out):
    """A user, as this tenant knows them."""

    id: UUID
    email: str
    name: str
    roles: list[str]
    status: MemberStatus
    """`invited`: they have not accepted yet, and may do nothing here."""
    created_at: datetime
    """When they were invited to this tenant."""
    updated_at: datetime
    version: int


class InvitationOut(Out):
    """What lets the user join, once: whoever has the token passes it on to them, and to nobody else.

    It is shown now and never again. It is good for `POST /api/v1/auth/invitations/accept`.
    """

    token: str
    expires_at: datetime


class InvitedUserOut(UserOut):
    """A user who was invited."""

    invitation: InvitationOut


def invited_out(member: Member, invitation: Invitation) -> InvitedUserOut:
    """Return an invited member with their invitation."""
    return InvitedUserOut(
        **UserOut.model_validate(member).model_dump(),
        invitation=InvitationOut.model_validate(invitation),
    )
