"""The commands of `iiot tenants` ask the platform as a person does: once in, and out again."""

import json
from collections.abc import Callable

import httpx2
import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import app

Asked = list[tuple[str, str, str | None]]
ACME = {"id": "1", "slug": "acme", "name": "Acme", "plan": "standard", "status": "active"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What a platform was asked, and by which credential."""
    asked: Asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path.removeprefix("/api/v1")
        asked.append((request.method, path, request.headers.get("authorization")))
        if path == "/auth/login":
            if json.loads(request.content)["email"] == "careful@iiot.example":
                return httpx2.Response(202, json={"mfa_token": "m", "factors": ["totp"]})
            return httpx2.Response(200, json={"access_token": "hers"})
        if path == "/tenants":
            return httpx2.Response(200, json={"items": [ACME], "next_cursor": None})
        if path == "/auth/logout":
            return httpx2.Response(204)
        return httpx2.Response(409, json={"detail": "suspend the tenant first"})

    made: Callable[..., httpx2.Client] = httpx2.Client
    transport = httpx2.MockTransport(answer)
    monkeypatch.setattr(httpx2, "Client", lambda **more: made(**more, transport=transport))
    return asked


def iiot(*arguments: str, **env: str) -> Result:
    clean = {"IIOT_TOKEN": "", "IIOT_EMAIL": "root@iiot.example", "IIOT_PASSWORD": "hush"}
    return CliRunner().invoke(app, ["tenants", *arguments], env=clean | env)


def test_who_logs_in_for_a_command_leaves_no_session_behind(asked: Asked) -> None:
    listed = iiot("list")
    assert (listed.exit_code, "acme" in listed.output) == (0, True)
    refused = iiot("delete", "acme", "--grace", "PT0S", "--yes")
    assert (refused.exit_code, "suspend the tenant first" in refused.output) == (1, True)
    way = [path for _, path, _ in asked]
    assert way == [
        *("/auth/login", "/tenants", "/auth/logout"),
        *("/auth/login", "/tenants", "/tenants/1", "/auth/logout"),
    ]
    assert asked[-1] == ("POST", "/auth/logout", "Bearer hers")


def test_one_login_serves_many_commands(asked: Asked) -> None:
    token = iiot("login").output.strip()
    assert token == "hers"
    for _ in range(2):
        assert iiot("show", "acme", IIOT_TOKEN=token).exit_code == 0
    assert [path for _, path, _ in asked] == ["/auth/login", "/tenants", "/tenants"]


def test_who_has_a_second_factor_is_told_the_way(asked: Asked) -> None:
    answer = iiot("list", IIOT_EMAIL="careful@iiot.example")
    assert answer.exit_code == 1
    assert "IIOT_TOKEN" in answer.output
