"""What a device's token is good for at the gateway."""

import pytest

from services.gateway.domain.device_token import may_ask

ME = "/api/v1/devices/me"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/telemetry"),
        ("GET", f"{ME}/commands"),
        ("POST", f"{ME}/commands/0b9e6a52-6c0e-4e5c-8e1c-0c2a6f0f7d11/reply"),
    ],
)
def test_a_device_may_speak_of_itself(method: str, path: str) -> None:
    assert may_ask(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/telemetry"),
        ("POST", "/api/v1/telemetry/"),
        ("GET", "/api/v1/telemetry/quarantine"),
        ("GET", "/api/v1/devices"),
        ("GET", ME),
        ("GET", "/api/v1/devices/mentor/commands"),
        ("GET", "/api/v1/devices/0b9e6a52-6c0e-4e5c-8e1c-0c2a6f0f7d11/commands"),
    ],
)
def test_and_of_nothing_else(method: str, path: str) -> None:
    assert not may_ask(method, path)
