"""Which key signs, and when keys come and go."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest

from services.gateway.domain.signing_key import (
    from_pem,
    needs_successor,
    new_key,
    signing_key,
    superseded,
    to_jwk,
    to_pem,
)

DAY_ONE = datetime(2026, 1, 1, tzinfo=UTC)
LIFETIME = timedelta(days=90)


def test_the_first_key_signs_at_once() -> None:
    key = new_key(DAY_ONE)
    assert signing_key([key], DAY_ONE) is key


def test_a_new_key_is_published_for_ten_minutes_before_it_signs() -> None:
    old, new = new_key(DAY_ONE), new_key(DAY_ONE + LIFETIME)
    assert signing_key([new, old], new.created_at + timedelta(minutes=9)) is old
    assert signing_key([new, old], new.created_at + timedelta(minutes=10)) is new


def test_an_old_key_is_published_until_its_last_token_has_expired() -> None:
    old, new = new_key(DAY_ONE), new_key(DAY_ONE + LIFETIME)
    signs_from = new.created_at + timedelta(minutes=10)
    assert superseded([old, new], signs_from + timedelta(minutes=59)) == []
    assert superseded([old, new], signs_from + timedelta(minutes=60)) == [old]
    assert superseded([new], signs_from + LIFETIME) == []


def test_a_key_is_succeeded_after_its_lifetime() -> None:
    key = new_key(DAY_ONE)
    assert needs_successor([], lifetime=LIFETIME, now=DAY_ONE)
    assert not needs_successor([key], lifetime=LIFETIME, now=DAY_ONE + LIFETIME / 2)
    assert needs_successor([key], lifetime=LIFETIME, now=DAY_ONE + LIFETIME)


def test_with_a_passphrase_the_key_cannot_be_read_without() -> None:
    key = new_key(DAY_ONE)
    pem = to_pem(key, "a passphrase")
    assert "ENCRYPTED" in pem
    back = from_pem(key.kid, pem, "a passphrase", DAY_ONE)
    assert back.private.private_numbers() == key.private.private_numbers()
    for wrong in ("", "another"):
        with pytest.raises((ValueError, TypeError)):
            from_pem(key.kid, pem, wrong, DAY_ONE)


def test_a_key_kept_before_there_was_a_passphrase_stays_readable() -> None:
    key = new_key(DAY_ONE)
    assert from_pem(key.kid, to_pem(key, ""), "a passphrase", DAY_ONE).kid == key.kid


def test_what_is_published_is_the_public_half_alone() -> None:
    key = new_key(DAY_ONE)
    jwk = to_jwk(key)
    assert "d" not in jwk
    assert jwt.PyJWK(dict(jwk)).key.public_numbers() == key.private.public_key().public_numbers()
