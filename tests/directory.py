"""A directory of people, as a plant's office has it: a private slapd under TLS."""

import subprocess
from pathlib import Path

import trustme

from deploy.local.errors import ServerMissing
from deploy.local.private import PrivateServer
from deploy.local.processes import (
    LOOPBACK,
    USUAL_PLACES,
    Account,
    Command,
    answers,
    find_program,
    own_directory,
)

BASE = "dc=plant,dc=example"
SEARCHER, SEARCHER_PASSWORD = f"cn=searcher,{BASE}", "may only look"

_PEOPLE = f"""
dn: {BASE}
objectClass: dcObject
objectClass: organization
o: Plant
dc: plant

dn: {SEARCHER}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: {SEARCHER_PASSWORD}

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: uid=ann,ou=people,{BASE}
objectClass: inetOrgPerson
uid: ann
cn: Ann Weller
sn: Weller
mail: ann@plant.example
userPassword: ann turns the wheel

dn: uid=bob,ou=people,{BASE}
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: Bob
mail: bob@elsewhere.example
userPassword: bob turns the wheel

dn: uid=mailless,ou=people,{BASE}
objectClass: inetOrgPerson
uid: mailless
cn: No Mail
sn: Mail
userPassword: nobody writes to me

dn: ou=groups,{BASE}
objectClass: organizationalUnit
ou: groups

dn: cn=Shift Leads,ou=groups,{BASE}
objectClass: groupOfNames
cn: Shift Leads
member: uid=ann,ou=people,{BASE}

dn: cn=Office,ou=groups,{BASE}
objectClass: groupOfNames
cn: Office
member: uid=bob,ou=people,{BASE}
"""

# An LDAPv3 anonymous bind, and the answer that it succeeded.
_BIND = bytes.fromhex("300c020101600702010304008000")
_BOUND = bytes.fromhex("300c02010161070a010004000400")

_SCHEMA = Path("/etc/ldap/schema")


class Directory(PrivateServer):
    """A slapd that speaks StartTLS at `url` and TLS at `tls_url`, with a few people in it."""

    name = "slapd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        programs = find_program("slapd", USUAL_PLACES), find_program("slapadd", USUAL_PLACES)
        if programs[0] is None or programs[1] is None:
            raise ServerMissing("slapd is missing: apt-get install slapd")
        self._slapd, self._slapadd = programs
        authority = trustme.CA()
        self._certificate = authority.issue_cert("directory.plant.example", LOOPBACK)
        self.ca: str = authority.cert_pem.bytes().decode()

    @property
    def url(self) -> str:
        return f"ldap://{LOOPBACK}:{self.port}"

    @property
    def tls_url(self) -> str:
        """The same under TLS from the first byte."""
        return f"ldaps://{LOOPBACK}:{self._port_of('tls')}"

    def _start(self, within_s: float) -> None:
        account = Account.for_directory(self._data)
        ports = self._take_ports("port", "tls")
        database = self._data / "people"
        database.mkdir(parents=True, exist_ok=True)
        key = self._data / "key.pem"
        chain = self._data / "chain.pem"
        self._certificate.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(blob.bytes() for blob in self._certificate.cert_chain_pems))
        configuration = self._data / "slapd.conf"
        configuration.write_text(
            "\n".join(
                (
                    *(
                        f"include {_SCHEMA}/{name}.schema"
                        for name in ("core", "cosine", "inetorgperson")
                    ),
                    "modulepath /usr/lib/ldap",
                    "moduleload back_mdb",
                    f"pidfile {self._data}/slapd.pid",
                    f"TLSCertificateFile {chain}",
                    f"TLSCertificateKeyFile {key}",
                    "security simple_bind=128",
                    "database mdb",
                    f"suffix {BASE}",
                    f"directory {database}",
                    "access to attrs=userPassword by anonymous auth by * none",
                    f'access to * by dn.exact="{SEARCHER}" read by * none',
                    "",
                )
            )
        )
        people = self._data / "people.ldif"
        people.write_text(_PEOPLE)
        own_directory(self._data, account)
        if not any(database.iterdir()):
            subprocess.run(
                [str(self._slapadd), "-f", str(configuration), "-l", str(people)],
                check=True,
                capture_output=True,
            )
            own_directory(self._data, account)
        addresses = f"{self.url} {self.tls_url}"
        words = [str(self._slapd), "-d", "0", "-f", str(configuration), "-h", addresses]
        self._process.start(Command(words, account, reaches=[self._data], cwd=self._data))
        self._process.wait_until(lambda: answers(ports["port"], _BIND, _BOUND), within_s=within_s)
