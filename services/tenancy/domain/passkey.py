"""Passkeys (WebAuthn): what an authenticator is asked, and whether its answer is good.

The challenge is the gateway's: it makes one for each ceremony, and lets it be used once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import base64url_to_bytes, options_to_json_dict
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    AuthenticatorTransport,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from libs.common.errors import Unauthenticated
from services.tenancy.domain.second_factor import Passkey

TIMEOUT_MS = 300_000
"""As long as a challenge is good."""
LONGEST_CREDENTIAL_ID = 1023
"""Bytes, by the standard."""

Credential = Mapping[str, Any]
"""What the browser gives, as JSON (PublicKeyCredential.toJSON); looked at by the library."""
Options = dict[str, Any]
"""What the browser is given, as JSON (`publicKey`)."""


@dataclass(frozen=True, slots=True)
class Ceremony:
    """One exchange with an authenticator: whose site it is for, and the challenge."""

    rp_id: str
    origins: tuple[str, ...]
    challenge: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Made:
    """A passkey that an authenticator has just made."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    transports: tuple[str, ...]


def creation_options(
    ceremony: Ceremony, *, rp_name: str, user_id: UUID, email: str, present: Sequence[Passkey]
) -> Options:
    """Return what an authenticator makes a passkey from; one that has one already makes none."""
    options = generate_registration_options(
        rp_id=ceremony.rp_id,
        rp_name=rp_name,
        user_id=user_id.bytes,
        user_name=email,
        challenge=ceremony.challenge,
        timeout=TIMEOUT_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            # So that it can be found without a name, and proves its owner: a login of its own.
            resident_key=ResidentKeyRequirement.PREFERRED,
            user_verification=UserVerificationRequirement.PREFERRED,
        ),
        exclude_credentials=[_descriptor(passkey) for passkey in present],
    )
    return options_to_json_dict(options)


def check_made(credential: Credential, ceremony: Ceremony) -> Made:
    """Return the passkey that an authenticator made. Raises Unauthenticated if anything is wrong."""
    try:
        made = verify_registration_response(
            credential=dict(credential),
            expected_challenge=ceremony.challenge,
            expected_rp_id=ceremony.rp_id,
            expected_origin=list(ceremony.origins),
        )
        told = credential["response"].get("transports") or ()
        transports = tuple(t.value for t in AuthenticatorTransport if t.value in told)
    except Exception as error:  # the library's parsers raise whatever they stumble over
        raise _refusal() from error
    if len(made.credential_id) > LONGEST_CREDENTIAL_ID:
        raise _refusal()
    return Made(made.credential_id, made.credential_public_key, made.sign_count, transports)


def request_options(ceremony: Ceremony, *, passkeys: Sequence[Passkey] | None) -> Options:
    """Return what an authenticator proves itself by: with one of the passkeys, or (None) any it has.

    A passkey that is all there is must also know its owner: by a finger, a face, a PIN.
    """
    options = generate_authentication_options(
        rp_id=ceremony.rp_id,
        challenge=ceremony.challenge,
        timeout=TIMEOUT_MS,
        allow_credentials=None if passkeys is None else [_descriptor(key) for key in passkeys],
        user_verification=UserVerificationRequirement.REQUIRED
        if passkeys is None
        else UserVerificationRequirement.PREFERRED,
    )
    return options_to_json_dict(options)


def credential_id_of(credential: Credential) -> bytes:
    """Return which passkey an answer says it is of. Raises Unauthenticated."""
    try:
        return base64url_to_bytes(credential["rawId"])
    except Exception as error:  # as above
        raise _refusal() from error


def check_used(
    credential: Credential, ceremony: Ceremony, passkey: Passkey, *, knows_owner: bool
) -> int:
    """Return what the counter of a passkey says, which has proved itself. Raises Unauthenticated.

    `knows_owner`: whether it must have verified them. The counter is not judged here.
    """
    try:
        handle = credential["response"].get("userHandle")
        if handle and base64url_to_bytes(handle) != passkey.user_id.bytes:
            raise ValueError("another user's passkey")
        used = verify_authentication_response(
            credential=dict(credential),
            expected_challenge=ceremony.challenge,
            expected_rp_id=ceremony.rp_id,
            expected_origin=list(ceremony.origins),
            credential_public_key=passkey.public_key,
            credential_current_sign_count=0,
            require_user_verification=knows_owner,
        )
    except Exception as error:  # as above
        raise _refusal() from error
    return used.new_sign_count


def _descriptor(passkey: Passkey) -> PublicKeyCredentialDescriptor:
    return PublicKeyCredentialDescriptor(
        id=passkey.credential_id,
        transports=[AuthenticatorTransport(transport) for transport in passkey.transports],
    )


def _refusal() -> Unauthenticated:
    return Unauthenticated("the passkey is not one of yours, or its answer is not valid")
