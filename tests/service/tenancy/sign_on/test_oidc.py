"""People come in by their plant's own OpenID provider, over HTTP on loopback."""

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from joserfc.jwk import ECKey

from deploy.local.processes import free_port
from libs.common.destinations import Destinations
from libs.common.errors import Unauthenticated, Unavailable
from libs.common.outbound import OutboundClient, PlantGuard
from services.tenancy.adapters.oidc import Attempt, OidcProviders
from services.tenancy.domain.identity_provider import OidcSettings, Vouched
from tests.service.tenancy.sign_on.oidc_provider import OidcProvider

ATTEMPT = Attempt("state-1", "nonce-1", "v" * 64, "https://iiot.example/api/v1/auth/sso/callback")
OPENED = PlantGuard(destinations=Destinations([IPv4Network("127.0.0.0/8")]))


@pytest.fixture
def settings(provider: OidcProvider) -> OidcSettings:
    return OidcSettings(provider.issuer, provider.client_id)


@pytest.fixture
def providers() -> OidcProviders:
    return OidcProviders(OutboundClient(OPENED))


async def browse(address: str) -> dict[str, str]:
    """Do what a browser does: go there, and bring back what the provider says."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        answer = await browser.get(address)
    assert answer.status_code == 307, answer.text
    assert answer.headers["location"].startswith(ATTEMPT.redirect_uri)
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))


async def come_in(
    providers: OidcProviders, settings: OidcSettings, secret: str, **changed: str
) -> Vouched:
    answer = await browse(await providers.begin(settings, ATTEMPT))
    assert answer["state"] == ATTEMPT.state
    return await providers.finish(settings, secret, ATTEMPT, answer | changed)


async def test_ann_comes_in_with_her_groups(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider
) -> None:
    ann = await come_in(providers, settings, provider.client_secret)
    assert ann == Vouched(
        "ann-7", "ann@plant.example", "Ann Weller", frozenset({"shift-leads", "staff"})
    )
    again = await come_in(providers, settings, provider.client_secret)
    assert again == ann
    assert provider.asked == ["discovery"], "what it says of itself is remembered"


async def test_what_the_token_leaves_out_is_asked_for(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider
) -> None:
    provider.email_in_token = False
    provider.changed_discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    ann = await come_in(providers, settings, provider.client_secret)
    assert (ann.email, ann.groups) == ("ann@plant.example", frozenset({"shift-leads", "staff"}))


async def test_a_new_key_is_taken_up_at_once(
    providers: OidcProviders,
    settings: OidcSettings,
    provider: OidcProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await come_in(providers, settings, provider.client_secret)
    monkeypatch.setattr("services.tenancy.adapters.oidc.REFETCH_S", 0.0)
    provider.key = ECKey.generate_key("P-256", auto_kid=True)
    assert (await come_in(providers, settings, provider.client_secret)).subject == "ann-7"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "another-client"},
        {"aud": ["iiot", "another-client"]},
        {"azp": "another-client"},
        {"nonce": "another-nonce"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"email_verified": False},
        {"email_verified": "false"},
        {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
    ],
    ids=str,
)
async def test_a_token_that_says_otherwise_is_refused(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider, claims: dict[str, Any]
) -> None:
    provider.changed_claims = claims
    with pytest.raises(Unauthenticated):
        await come_in(providers, settings, provider.client_secret)


async def test_a_token_by_another_key_is_refused(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider
) -> None:
    provider.published = [ECKey.generate_key("P-256", auto_kid=True)]
    with pytest.raises(Unauthenticated, match="token is not valid"):
        await come_in(providers, settings, provider.client_secret)


async def test_an_answer_that_is_not_this_attempt_s_is_refused(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider
) -> None:
    answer = await browse(await providers.begin(settings, ATTEMPT))
    secret = provider.client_secret
    with pytest.raises(Unauthenticated, match="another identity provider"):
        await providers.finish(settings, secret, ATTEMPT, answer | {"iss": "https://other"})
    without_iss = {name: value for name, value in answer.items() if name != "iss"}
    with pytest.raises(Unauthenticated, match="another identity provider"):
        await providers.finish(settings, secret, ATTEMPT, without_iss)
    with pytest.raises(Unauthenticated, match="no code"):
        await providers.finish(settings, secret, ATTEMPT, answer | {"code": ""})
    with pytest.raises(Unauthenticated, match="access_denied"):
        await providers.finish(settings, secret, ATTEMPT, {"error": "access_denied"})
    other_verifier = replace(ATTEMPT, verifier="w" * 64)
    with pytest.raises(Unauthenticated, match="invalid_grant"):
        await providers.finish(settings, secret, other_verifier, answer)
    with pytest.raises(Unauthenticated, match="invalid_grant"):
        await providers.finish(settings, secret, ATTEMPT, answer)  # a code is good for one use
    with pytest.raises(Unauthenticated, match="invalid_client"):
        await come_in(providers, settings, "not the secret")


async def test_a_provider_that_calls_itself_otherwise_is_none(
    providers: OidcProviders, settings: OidcSettings, provider: OidcProvider
) -> None:
    provider.changed_discovery = {"issuer": "https://other.example"}
    with pytest.raises(Unavailable, match="calls itself otherwise"):
        await providers.begin(settings, ATTEMPT)
    provider.changed_discovery = {"token_endpoint": 7}
    with pytest.raises(Unavailable, match="not understood"):
        await providers.begin(settings, ATTEMPT)


async def test_a_provider_that_leads_into_our_own_network_is_not_followed(
    settings: OidcSettings, provider: OidcProvider
) -> None:
    closed = OidcProviders(OutboundClient(PlantGuard()))
    with pytest.raises(Unavailable, match="must lead to an address"):
        await closed.begin(settings, ATTEMPT)
    opened = OidcProviders(OutboundClient(OPENED))
    for elsewhere in (
        "http://169.254.169.254/latest",
        "http://10.0.0.1/keys",
        "file:///etc/passwd",
    ):
        provider.changed_discovery = {"jwks_uri": elsewhere}
        with pytest.raises(Unavailable, match="cannot be used"):
            await opened.begin(settings, ATTEMPT)


async def test_a_provider_that_is_away_is_said_to_be_that(providers: OidcProviders) -> None:
    nowhere = OidcSettings(f"http://127.0.0.1:{free_port()}", "iiot")
    with pytest.raises(Unavailable, match="does not answer"):
        await providers.begin(nowhere, ATTEMPT)
