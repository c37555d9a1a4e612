from libs.common.auth.api_key import (
    PATTERN,
    hash_key,
    is_api_key,
    is_well_formed,
    new_handle,
    new_secret,
)


def test_a_key_tells_what_it_is_and_shows_its_handle_alone() -> None:
    secret = new_secret(new_handle())
    assert is_api_key(secret.key)
    assert is_well_formed(secret.key)
    assert len(secret.key) == 64
    assert secret.key.startswith(f"{secret.handle}_")
    assert secret.key_hash == hash_key(secret.key)
    assert secret.key not in repr(secret)


def test_rotated_it_keeps_its_handle_and_nothing_else() -> None:
    first = new_secret(new_handle())
    second = new_secret(first.handle)
    assert second.handle == first.handle
    assert second.key != first.key


def test_a_scanner_finds_it_in_a_line_of_a_log() -> None:
    key = new_secret(new_handle()).key
    (found,) = PATTERN.findall(f"GET /api/v1/devices authorization='Bearer {key}' 200")
    assert found == key


def test_what_was_mistyped_or_cut_is_none() -> None:
    key = new_secret(new_handle()).key
    for at in (6, 20, 40, 57, 63):
        other = "x" if key[at] != "x" else "y"
        assert not is_well_formed(key[:at] + other + key[at + 1 :])
    for wrong in ("", "iiotk_", key[:-1], key + "0", f" {key}", key + "\n", key.upper()):
        assert not is_well_formed(wrong)
