"""A SAML identity provider, as far as it is one: it signs what a test wants it to have said."""

import base64
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from lxml import etree
from signxml.algorithms import CanonicalizationMethod
from signxml.signer import XMLSigner

PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
ASSERTION = "urn:oasis:names:tc:SAML:2.0:assertion"
SIGNATURE = "http://www.w3.org/2000/09/xmldsig#"


def key_and_certificate() -> tuple[rsa.RSAPrivateKey, str]:
    """Return a key, and the certificate (PEM) that a tenant would enter."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp.plant.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2090, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return key, certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(slots=True, kw_only=True)
class Said:
    """What the provider says. Tests change a field to make it say something else."""

    request_id: str
    now: datetime
    audience: str
    recipient: str
    issuer: str = "https://idp.plant.example"
    subject: str = "ann-7"
    attributes: dict[str, list[str]] = field(
        default_factory=lambda: {
            "email": ["ann@plant.example"],
            "name": ["Ann Weller"],
            "groups": ["Shift Leads", "Staff"],
        }
    )
    status: str = "urn:oasis:names:tc:SAML:2.0:status:Success"
    method: str = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
    lifetime: timedelta = timedelta(minutes=5)
    sign_assertion: bool = True
    sign_response: bool = False


@dataclass(slots=True)
class SamlProvider:
    """Signs with its key."""

    key: rsa.RSAPrivateKey
    certificate: str

    def tree(self, said: Said) -> etree._Element:
        """Return the signed response, for a test to tamper with."""
        assertion = _assertion(said)
        if said.sign_assertion:
            assertion = self._sign(assertion)
        response = etree.Element(
            f"{{{PROTOCOL}}}Response",
            nsmap={"samlp": PROTOCOL},
            ID="_response",
            Version="2.0",
            InResponseTo=said.request_id,
            IssueInstant=_time(said.now),
        )
        etree.SubElement(response, f"{{{ASSERTION}}}Issuer").text = said.issuer
        status = etree.SubElement(response, f"{{{PROTOCOL}}}Status")
        etree.SubElement(status, f"{{{PROTOCOL}}}StatusCode", Value=said.status)
        response.append(assertion)
        return self._sign(response) if said.sign_response else response

    def response(self, said: Said) -> str:
        """Return the response as the browser brings it."""
        return encoded(self.tree(said))

    def _sign(self, element: etree._Element) -> etree._Element:
        signer = XMLSigner(c14n_algorithm=CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0)
        signed: etree._Element = signer.sign(
            element,
            key=self.key,
            cert=self.certificate,
            reference_uri=f"#{element.get('ID')}",
            id_attribute="ID",
        )
        return signed


def encoded(tree: etree._Element) -> str:
    """Return a document as it is posted."""
    return base64.b64encode(etree.tostring(tree)).decode()


def request_of(address: str) -> etree._Element:
    """Return the request that an address carries to the provider."""
    carried = parse_qs(urlsplit(address).query)["SAMLRequest"][0]
    return etree.fromstring(zlib.decompress(base64.b64decode(carried), wbits=-15))


def _assertion(said: Said) -> etree._Element:
    root = etree.Element(
        f"{{{ASSERTION}}}Assertion",
        nsmap={"saml": ASSERTION},
        ID="_assertion",
        Version="2.0",
        IssueInstant=_time(said.now),
    )
    etree.SubElement(root, f"{{{ASSERTION}}}Issuer").text = said.issuer
    subject = etree.SubElement(root, f"{{{ASSERTION}}}Subject")
    etree.SubElement(subject, f"{{{ASSERTION}}}NameID").text = said.subject
    confirmation = etree.SubElement(
        subject, f"{{{ASSERTION}}}SubjectConfirmation", Method=said.method
    )
    etree.SubElement(
        confirmation,
        f"{{{ASSERTION}}}SubjectConfirmationData",
        Recipient=said.recipient,
        InResponseTo=said.request_id,
        NotOnOrAfter=_time(said.now + said.lifetime),
    )
    conditions = etree.SubElement(
        root,
        f"{{{ASSERTION}}}Conditions",
        NotBefore=_time(said.now - timedelta(minutes=1)),
        NotOnOrAfter=_time(said.now + said.lifetime),
    )
    restriction = etree.SubElement(conditions, f"{{{ASSERTION}}}AudienceRestriction")
    etree.SubElement(restriction, f"{{{ASSERTION}}}Audience").text = said.audience
    etree.SubElement(root, f"{{{ASSERTION}}}AuthnStatement", AuthnInstant=_time(said.now))
    statement = etree.SubElement(root, f"{{{ASSERTION}}}AttributeStatement")
    for name, values in said.attributes.items():
        attribute = etree.SubElement(statement, f"{{{ASSERTION}}}Attribute", Name=name)
        for value in values:
            etree.SubElement(attribute, f"{{{ASSERTION}}}AttributeValue").text = value
    return root


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
