"""What a SAML identity provider signed is believed, and nothing that somebody made of it."""

import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from lxml import etree

from libs.common.errors import Unauthenticated
from services.tenancy.adapters.saml import Service, read_response, sign_in_address
from services.tenancy.domain.identity_provider import SamlSettings, Vouched
from tests.service.tenancy.sign_on.saml_provider import (
    ASSERTION,
    PROTOCOL,
    SIGNATURE,
    Said,
    SamlProvider,
    encoded,
    key_and_certificate,
    request_of,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SERVICE = Service("https://iiot.example/saml/plant", "https://iiot.example/api/v1/auth/sso/saml")
REQUEST = "_request-1"


@pytest.fixture(scope="module")
def provider() -> SamlProvider:
    return SamlProvider(*key_and_certificate())


@pytest.fixture(scope="module")
def somebody_else() -> SamlProvider:
    return SamlProvider(*key_and_certificate())


@pytest.fixture
def said() -> Said:
    return Said(
        request_id=REQUEST,
        now=NOW,
        audience=SERVICE.entity_id,
        recipient=SERVICE.consumer_url,
    )


@pytest.fixture
def settings(provider: SamlProvider) -> SamlSettings:
    return SamlSettings(
        entity_id="https://idp.plant.example",
        sign_in_url="https://idp.plant.example/sso?plant=7",
        certificates=(provider.certificate,),
    )


def read(settings: SamlSettings, response: str, now: datetime = NOW) -> Vouched:
    return read_response(settings, SERVICE, response, request_id=REQUEST, now=now)


def test_the_browser_takes_a_request_there(settings: SamlSettings) -> None:
    address = sign_in_address(settings, SERVICE, request_id=REQUEST, state="s7", at=NOW)
    assert address.startswith("https://idp.plant.example/sso?plant=7&SAMLRequest=")
    assert address.endswith("&RelayState=s7")
    request = request_of(address)
    assert request.get("ID") == REQUEST
    assert request.get("AssertionConsumerServiceURL") == SERVICE.consumer_url
    assert request.findtext(f"{{{ASSERTION}}}Issuer") == SERVICE.entity_id


@pytest.mark.parametrize(("assertion", "response"), [(True, False), (False, True), (True, True)])
def test_ann_is_known_by_what_was_signed(
    provider: SamlProvider,
    settings: SamlSettings,
    said: Said,
    assertion: bool,
    response: bool,
) -> None:
    told = replace(said, sign_assertion=assertion, sign_response=response)
    ann = read(settings, provider.response(told))
    assert ann == Vouched(
        "ann-7", "ann@plant.example", "Ann Weller", frozenset({"Shift Leads", "Staff"})
    )


def test_two_certificates_are_good_while_one_replaces_the_other(
    provider: SamlProvider, somebody_else: SamlProvider, settings: SamlSettings, said: Said
) -> None:
    both = replace(settings, certificates=(somebody_else.certificate, provider.certificate))
    assert read(both, provider.response(said)).subject == "ann-7"


def test_a_subject_that_is_an_address_will_do(
    provider: SamlProvider, settings: SamlSettings, said: Said
) -> None:
    told = replace(said, subject="ann@plant.example", attributes={})
    ann = read(settings, provider.response(told))
    assert (ann.email, ann.name, ann.groups) == ("ann@plant.example", "ann", frozenset())
    with pytest.raises(Unauthenticated, match="no email address"):
        read(settings, provider.response(replace(said, attributes={})))


SAID_OTHERWISE: dict[str, Callable[[Said], Said]] = {
    "to another service": lambda said: replace(said, audience="https://other.example"),
    "for another address": lambda said: replace(said, recipient="https://other.example/acs"),
    "to another request": lambda said: replace(said, request_id="_request-2"),
    "by another issuer": lambda said: replace(said, issuer="https://other.example"),
    "an hour ago": lambda said: replace(said, now=NOW - timedelta(hours=1)),
    "in an hour": lambda said: replace(said, now=NOW + timedelta(hours=1)),
    "that nobody came in": lambda said: replace(
        said, status="urn:oasis:names:tc:SAML:2.0:status:Responder"
    ),
    "of somebody with a key": lambda said: replace(
        said, method="urn:oasis:names:tc:SAML:2.0:cm:holder-of-key"
    ),
    "of nobody": lambda said: replace(said, subject=""),
    "without signing it": lambda said: replace(said, sign_assertion=False),
}


@pytest.mark.parametrize("how", SAID_OTHERWISE)
def test_what_is_said_otherwise_is_refused(
    provider: SamlProvider, settings: SamlSettings, said: Said, how: str
) -> None:
    with pytest.raises(Unauthenticated):
        read(settings, provider.response(SAID_OTHERWISE[how](said)))


def test_somebody_else_s_signature_is_refused(
    somebody_else: SamlProvider, settings: SamlSettings, said: Said
) -> None:
    with pytest.raises(Unauthenticated, match="not the provider's"):
        read(settings, somebody_else.response(said))


def _assertion_of(tree: etree._Element) -> etree._Element:
    found = tree.find(f"{{{ASSERTION}}}Assertion")
    assert found is not None
    return found


def _forged(signed: etree._Element) -> etree._Element:
    """Return an unsigned copy of the assertion that says somebody else came in."""
    forged = copy.deepcopy(signed)
    signature = forged.find(f"{{{SIGNATURE}}}Signature")
    assert signature is not None
    forged.remove(signature)
    name_id = forged.find(f"{{{ASSERTION}}}Subject/{{{ASSERTION}}}NameID")
    assert name_id is not None
    name_id.text = "boss-1"
    for value in forged.iter(f"{{{ASSERTION}}}AttributeValue"):
        if value.text == "ann@plant.example":
            value.text = "boss@plant.example"
    return forged


def _change_name(tree: etree._Element) -> None:
    name_id = next(tree.iter(f"{{{ASSERTION}}}NameID"))
    name_id.text = "boss-1"


def _change_group(tree: etree._Element) -> None:
    for value in tree.iter(f"{{{ASSERTION}}}AttributeValue"):
        if value.text == "Staff":
            value.text = "Admins"


def _drop_signature(tree: etree._Element) -> None:
    assertion = _assertion_of(tree)
    signature = assertion.find(f"{{{SIGNATURE}}}Signature")
    assert signature is not None
    assertion.remove(signature)


def _wrap_before(tree: etree._Element) -> None:
    """XSW: a forged assertion in front of the signed one."""
    signed = _assertion_of(tree)
    forged = _forged(signed)
    forged.set("ID", "_forged")
    signed.addprevious(forged)


def _wrap_after(tree: etree._Element) -> None:
    signed = _assertion_of(tree)
    forged = _forged(signed)
    forged.set("ID", "_forged")
    signed.addnext(forged)


def _wrap_around(tree: etree._Element) -> None:
    """XSW: the signed assertion hidden in a forged one, which carries its signature."""
    signed = _assertion_of(tree)
    forged = _forged(signed)
    forged.set("ID", "_forged")
    signature = signed.find(f"{{{SIGNATURE}}}Signature")
    assert signature is not None
    tree.replace(signed, forged)
    signed.remove(signature)
    forged.insert(1, signature)
    etree.SubElement(signature, f"{{{SIGNATURE}}}Object").append(signed)


def _wrap_same_id(tree: etree._Element) -> None:
    signed = _assertion_of(tree)
    signed.addprevious(_forged(signed))


def _hide_in_extensions(tree: etree._Element) -> None:
    signed = _assertion_of(tree)
    forged = _forged(signed)
    tree.replace(signed, forged)
    etree.SubElement(tree, f"{{{PROTOCOL}}}Extensions").append(signed)


def _cut_by_a_comment(tree: etree._Element) -> None:
    """A comment within a text, which some canonicalisations leave out of what is signed."""
    name_id = next(tree.iter(f"{{{ASSERTION}}}NameID"))
    name_id.text = "ann"
    comment = etree.Comment("cut")
    comment.tail = "-7"
    name_id.append(comment)


def _other_algorithm(tree: etree._Element) -> None:
    method = next(tree.iter(f"{{{SIGNATURE}}}SignatureMethod"))
    method.set("Algorithm", "http://www.w3.org/2000/09/xmldsig#hmac-sha1")


TAMPERED: dict[str, Callable[[etree._Element], None]] = {
    "another name": _change_name,
    "another group": _change_group,
    "no signature": _drop_signature,
    "a forged one before": _wrap_before,
    "a forged one after": _wrap_after,
    "a forged one around": _wrap_around,
    "a forged one of the same id": _wrap_same_id,
    "the signed one hidden": _hide_in_extensions,
    "another algorithm": _other_algorithm,
}


@pytest.mark.parametrize("how", TAMPERED)
def test_nobody_comes_in_as_somebody_else_by_tampering(
    provider: SamlProvider, settings: SamlSettings, said: Said, how: str
) -> None:
    tree = provider.tree(said)
    TAMPERED[how](tree)
    with pytest.raises(Unauthenticated):
        read(settings, encoded(tree))


def test_a_comment_does_not_cut_a_name_off(
    provider: SamlProvider, settings: SamlSettings, said: Said
) -> None:
    tree = provider.tree(said)
    _cut_by_a_comment(tree)
    try:
        came_in = read(settings, encoded(tree))
    except Unauthenticated:
        return
    assert came_in.subject == "ann-7"


BOMB = b"""<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol">&b;</samlp:Response>"""
FILE = b"""<!DOCTYPE r [<!ENTITY f SYSTEM "file:///etc/passwd">]>
<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol">&f;</samlp:Response>"""


@pytest.mark.parametrize(
    "document",
    [b"", b"not xml", b"<html/>", BOMB, FILE, b"<a>" * 10_000, b"\x00\xff"],
    ids=["nothing", "text", "html", "bomb", "file", "deep", "bytes"],
)
def test_what_is_no_response_is_refused(settings: SamlSettings, document: bytes) -> None:
    with pytest.raises(Unauthenticated, match="not valid"):
        read(settings, base64.b64encode(document).decode())


@pytest.mark.parametrize("response", ["%%%", "A" * 300_000])
def test_what_is_not_even_base64_or_endless_is_refused(
    settings: SamlSettings, response: str
) -> None:
    with pytest.raises(Unauthenticated, match="not valid"):
        read(settings, response)
