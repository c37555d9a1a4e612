"""What the bodies of several routes have in common."""

from typing import Annotated

from pydantic import Field, SecretStr

from services.tenancy.domain.email import MAX_LENGTH as LONGEST_EMAIL

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
Email = Annotated[str, Field(max_length=LONGEST_EMAIL, examples=["ann@plant.example"])]
NewPassword = Annotated[SecretStr, Field(description="12 to 1024 characters, whichever you like.")]
RoleNames = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=20, examples=[["operator"]]),
]
