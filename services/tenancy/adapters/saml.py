"""SAML 2.0 identity providers: the request that the browser takes there, and the response it brings back.

Only what a signature covers is read: the assertion is taken out of what the library verified, never
looked for in the document that came.
"""

import base64
import binascii
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from lxml import etree
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.exceptions import SignXMLException
from signxml.verifier import SignatureConfiguration, VerifyResult, XMLVerifier

from libs.common.errors import Unauthenticated
from services.tenancy.domain.identity_provider import SamlSettings, Vouched

PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
ASSERTION = "urn:oasis:names:tc:SAML:2.0:assertion"
SIGNATURE = "http://www.w3.org/2000/09/xmldsig#"
POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
SUCCESS = "urn:oasis:names:tc:SAML:2.0:status:Success"
SKEW = timedelta(minutes=2)
LONGEST = 256 * 1024
"""Of a response, as it comes."""

_METHODS = frozenset(
    {
        SignatureMethod.RSA_SHA256,
        SignatureMethod.RSA_SHA384,
        SignatureMethod.RSA_SHA512,
        SignatureMethod.ECDSA_SHA256,
        SignatureMethod.ECDSA_SHA384,
        SignatureMethod.ECDSA_SHA512,
    }
)
_DIGESTS = frozenset({DigestAlgorithm.SHA256, DigestAlgorithm.SHA384, DigestAlgorithm.SHA512})


# Far from the ends of the calendar, beyond which nothing can be added.
_EVER = datetime(2000, 1, 1, tzinfo=UTC)
_NEVER = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Service:
    """What we are to a provider: our name, and where it sends its responses."""

    entity_id: str
    consumer_url: str


def sign_in_address(
    settings: SamlSettings, service: Service, *, request_id: str, state: str, at: datetime
) -> str:
    """Return the address at the provider that the browser is sent to (HTTP-Redirect binding)."""
    request = etree.Element(
        f"{{{PROTOCOL}}}AuthnRequest",
        nsmap={"samlp": PROTOCOL, "saml": ASSERTION},
        ID=request_id,
        Version="2.0",
        IssueInstant=_written(at),
        Destination=settings.sign_in_url,
        ProtocolBinding=POST,
        AssertionConsumerServiceURL=service.consumer_url,
    )
    etree.SubElement(request, f"{{{ASSERTION}}}Issuer").text = service.entity_id
    deflated = zlib.compress(etree.tostring(request), wbits=-15)
    query = urlencode({"SAMLRequest": base64.b64encode(deflated).decode(), "RelayState": state})
    return f"{settings.sign_in_url}{'&' if '?' in settings.sign_in_url else '?'}{query}"


def read_response(
    settings: SamlSettings, service: Service, response: str, *, request_id: str, now: datetime
) -> Vouched:
    """Return whom the provider vouches for in a response (base64) to our request.

    Raises Unauthenticated if it is not signed by the provider, is not meant for us, does not answer
    this request, or holds no longer.
    """
    assertion = _signed_assertion(settings, _decoded(response))
    if _text(assertion, "Issuer") != settings.entity_id:
        raise _refusal("it is issued by somebody else")
    _check_conditions(assertion, service, now)
    _check_subject(assertion, service, request_id, now)
    name_id = assertion.find(f"{{{ASSERTION}}}Subject/{{{ASSERTION}}}NameID")
    if name_id is None or not _whole(name_id):
        raise _refusal("it names nobody")
    attributes = {
        attribute.get("Name", ""): [
            _whole(value) for value in attribute.findall(f"{{{ASSERTION}}}AttributeValue")
        ]
        for attribute in assertion.iterfind(
            f"{{{ASSERTION}}}AttributeStatement/{{{ASSERTION}}}Attribute"
        )
    }
    subject = _whole(name_id)
    email = next(iter(attributes.get(settings.email_attribute, ())), "") or (
        subject if "@" in subject else ""
    )
    if not email:
        raise Unauthenticated(
            f"the identity provider tells no email address: there is no {settings.email_attribute!r}"
        )
    return Vouched(
        subject=subject,
        email=email,
        name=next(iter(attributes.get(settings.name_attribute, ())), "") or email.partition("@")[0],
        groups=frozenset(attributes.get(settings.groups_attribute, ())),
    )


def _decoded(response: str) -> etree._Element:
    if len(response) > LONGEST:
        raise _refusal("it is too long")
    try:
        document = base64.b64decode(response, validate=False)
        # No entities, no DTD, nothing from elsewhere.
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
        )
        root = etree.fromstring(document, parser)
    except (binascii.Error, etree.XMLSyntaxError, ValueError) as error:
        raise _refusal("it is not XML") from error
    if root.getroottree().docinfo.doctype:  # type: ignore[union-attr]  # left out of the stubs
        raise _refusal("it has a document type")
    if root.tag != f"{{{PROTOCOL}}}Response":
        raise _refusal("it is no response")
    status = root.find(f"{{{PROTOCOL}}}Status/{{{PROTOCOL}}}StatusCode")
    if status is None or status.get("Value") != SUCCESS:
        raise Unauthenticated("the identity provider let nobody in")
    if root.find(f"{{{ASSERTION}}}EncryptedAssertion") is not None:
        raise _refusal("its assertion is encrypted, which is not supported")
    # A second one, wherever it hides, is somebody's attempt to have it read in place of the signed.
    if len(list(root.iter(f"{{{ASSERTION}}}Assertion"))) != 1:
        raise _refusal("it holds not one assertion")
    return root


def _signed_assertion(settings: SamlSettings, root: etree._Element) -> etree._Element:
    """Return the one assertion that a certificate of the provider has signed, alone or with the response."""
    places = [
        place
        for place, path in (
            ("./", f"{{{SIGNATURE}}}Signature"),
            (f"./{{{ASSERTION}}}Assertion/", f"{{{ASSERTION}}}Assertion/{{{SIGNATURE}}}Signature"),
        )
        if root.find(path) is not None
    ]
    if not places:
        raise _refusal("it is not signed")
    for certificate in settings.certificates:
        for place in places:
            signed = _verified(root, certificate, place)
            if signed is None:
                continue
            if signed.tag == f"{{{ASSERTION}}}Assertion":
                return signed
            found = signed.findall(f"{{{ASSERTION}}}Assertion")
            if signed.tag == f"{{{PROTOCOL}}}Response" and len(found) == 1:
                return found[0]
            raise _refusal("what is signed is not one assertion")
    raise _refusal("the signature is not the provider's")


def _verified(root: etree._Element, certificate: str, place: str) -> etree._Element | None:
    config = SignatureConfiguration(
        location=place,
        signature_methods=_METHODS,
        digest_algorithms=_DIGESTS,
        # The certificate was given to us; what the response brings besides counts for nothing.
        ignore_ambiguous_key_info=True,
    )
    try:
        result = XMLVerifier().verify(
            etree.tostring(root), x509_cert=certificate, id_attribute="ID", expect_config=config
        )
    except (SignXMLException, ValueError, etree.LxmlError):
        return None
    assert isinstance(result, VerifyResult)
    return result.signed_xml


def _check_conditions(assertion: etree._Element, service: Service, now: datetime) -> None:
    conditions = assertion.find(f"{{{ASSERTION}}}Conditions")
    if conditions is None:
        raise _refusal("it has no conditions")
    if _moment(conditions.get("NotBefore"), _EVER) > now + SKEW:
        raise _refusal("it does not hold yet")
    if _moment(conditions.get("NotOnOrAfter"), _NEVER) <= now - SKEW:
        raise _refusal("it holds no longer")
    restrictions = conditions.findall(f"{{{ASSERTION}}}AudienceRestriction")
    if not restrictions:
        raise _refusal("it does not say whom it is for")
    for restriction in restrictions:
        meant = [_whole(each) for each in restriction.findall(f"{{{ASSERTION}}}Audience")]
        if service.entity_id not in meant:
            raise _refusal("it is meant for somebody else")


def _check_subject(
    assertion: etree._Element, service: Service, request_id: str, now: datetime
) -> None:
    """Raise Unauthenticated unless one confirmation answers our request, here and now."""
    for confirmation in assertion.iterfind(
        f"{{{ASSERTION}}}Subject/{{{ASSERTION}}}SubjectConfirmation"
    ):
        facts = confirmation.find(f"{{{ASSERTION}}}SubjectConfirmationData")
        if (
            confirmation.get("Method") == BEARER
            and facts is not None
            and facts.get("Recipient") == service.consumer_url
            and facts.get("InResponseTo") == request_id
            and facts.get("NotBefore") is None
            and facts.get("NotOnOrAfter") is not None
            and _moment(facts.get("NotOnOrAfter"), _EVER) > now - SKEW
        ):
            return
    raise _refusal("it does not answer this request")


def _text(parent: etree._Element, name: str) -> str:
    found = parent.find(f"{{{ASSERTION}}}{name}")
    return _whole(found) if found is not None else ""


def _whole(element: etree._Element) -> str:
    """Return all of an element's text: a comment within must not cut it off."""
    return "".join(_texts(element)).strip()


def _texts(element: etree._Element) -> Iterator[str]:
    for text in element.itertext():
        yield str(text)


def _moment(written: str | None, otherwise: datetime) -> datetime:
    if written is None:
        return otherwise
    try:
        moment = datetime.fromisoformat(written)
    except ValueError as error:
        raise _refusal("a time in it is none") from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusal(why: str) -> Unauthenticated:
    return Unauthenticated(f"the identity provider's response is not valid: {why}")
