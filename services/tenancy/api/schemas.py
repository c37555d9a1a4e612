"""What the bodies of several routes have in common."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field, field_validator

from libs.common.email import MAX_LENGTH as LONGEST_EMAIL
from libs.common.http.schemas import Out
from services.tenancy.domain.invitation import Invitation
from services.tenancy.domain.member import Member, MemberStatus

Name = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$", examples=["Ann Meyer"])
]
Email = Annotated[str, Field(max_length=LONGEST_EMAIL, examples=["ann@plant.example"])]
RoleNames = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=20, examples=[["operator"]]),
]

DeviceGroups = Annotated[
    Annotated[list[UUID], Field(min_length=1, max_length=100)] | None,
    Field(description="What they are limited to, with all groups below; null: all devices."),
]


class UserOut(Out):
    """A user, as this tenant knows them."""

    id: UUID
    email: Annotated[str, Field(examples=["ann@plant.example"])]
    name: Annotated[str, Field(examples=["Ann Meyer"])]
    roles: Annotated[list[str], Field(examples=[["operator"]])]
    device_groups: list[UUID] | None
    """The groups of devices that they are limited to, with all below them; null: all devices."""
    status: MemberStatus
    """`invited`: they have not accepted yet, and may do nothing here."""
    created_at: datetime
    """When they were invited to this tenant."""
    updated_at: datetime
    version: int

    @field_validator("device_groups", mode="before")
    @classmethod
    def _in_order(cls, groups: Iterable[UUID] | None) -> list[UUID] | None:
        return None if groups is None else sorted(groups)


class InvitationOut(Out):
    """What lets the user join, once: whoever has the token passes it on to them, and to nobody else.

    It is shown now and never again. It is good for `POST /api/v1/auth/invitations/accept`.
    """

    token: Annotated[str, Field(examples=["Zx8cV2bN5mA1sD4fG7hJ0kL3qW6eR9tY"])]
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
