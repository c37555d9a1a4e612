"""Keys that are planted are found, without being shown."""

from pathlib import Path

import pytest

from deploy.scan import secrets_in

# In two parts, so that this file holds none itself.
PLANTED = {
    "AWS Access Key": "AKIA" + "IOSFODNN7EXAMPLQ",
    "GitHub Token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "Private Key": "-----BEGIN " + "EC PRIVATE KEY-----",
    "API key of ours": "iiotk_" + "7Kq2mX9d_" + "s" * 43,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_key_is_found(kind: str, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(f'import os\n\nkey = "{PLANTED[kind]}"\n')
    (found,) = secrets_in(tmp_path, ["settings.py"])
    assert (found.path, found.line, found.kind) == ("settings.py", 3, kind)
    assert PLANTED[kind] not in str(found)


def test_what_is_none_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text('id = "5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"\n')
    assert list(secrets_in(tmp_path, ["plant.py"])) == []
