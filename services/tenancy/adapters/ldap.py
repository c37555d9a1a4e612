"""Directories that people prove their password to: LDAP, always under TLS."""

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ldap3 import NONE, SUBTREE, Connection, Server, Tls
from ldap3.core.exceptions import LDAPException, LDAPInvalidCredentialsResult
from ldap3.utils.conv import escape_filter_chars

from libs.common.destinations import Destinations
from libs.common.errors import Forbidden, Unauthenticated, Unavailable
from services.tenancy.domain.identity_provider import LdapSettings, Vouched

WITHIN_S = 5
AT_ONCE = 8
"""Conversations with directories. Each holds a thread while it lasts."""
MOST_GROUPS = 1_000


class Directories:
    """Asks directories. The library blocks, so it works in threads of its own."""

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ldap")
        self._room = asyncio.Semaphore(AT_ONCE)

    def close(self) -> None:
        """Give the threads up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def prove(
        self, settings: LdapSettings, secret: str, login: str, password: str
    ) -> Vouched:
        """Return who has this login and password in the directory.

        Raises Unauthenticated, in equal words whatever was wrong; Unavailable if the directory cannot
        be asked, or its answer leaves open who it is.
        """
        refusal = Unauthenticated("the email address or the password is wrong")
        # A bind without a password is no proof: directories let it pass as nobody (RFC 4513, 5.1.2).
        if not password or not login or "\0" in login + password:
            raise refusal
        host, port, _ = _where(settings)
        try:
            address = await self._destinations.address_of(host, port)
        except Forbidden as error:
            raise _unusable("is not at an address that this installation connects to") from error
        async with self._room:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, _prove, settings, secret, address, login, password
            )
        if found is None:
            raise refusal
        return found


class _Tls(Tls):
    """TLS as Python checks it. The library's own way asks for a function that Python gave up.

    Connected is to the address that was judged; the certificate must be the name's.
    """

    def __init__(self, host: str, ca: str) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._host = host
        self._context = ssl.create_default_context(cadata=ca or None)

    def wrap_socket(self, connection: Connection, do_handshake: bool = False) -> None:
        connection.socket.settimeout(WITHIN_S)
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=self._host)


def _prove(
    settings: LdapSettings, secret: str, address: str, login: str, password: str
) -> Vouched | None:
    """Find the user, then bind as them; None if there is no such user or it is not their password."""
    try:
        with _connection(settings, address, settings.bind_dn, secret) as searcher:
            entry = _user(searcher, settings, login)
            if entry is None:
                return None
            try:
                with _connection(settings, address, entry["dn"], password):
                    pass
            except LDAPInvalidCredentialsResult:
                return None
            return _vouched(entry, settings, _groups(searcher, settings, entry))
    except LDAPInvalidCredentialsResult as error:
        raise _unusable("does not let us search") from error
    except (LDAPException, OSError, ssl.SSLError) as error:
        raise _unusable(f"cannot be asked: {type(error).__name__}") from error


@contextmanager
def _connection(
    settings: LdapSettings, address: str, dn: str, password: str
) -> Iterator[Connection]:
    """Give a bound connection. Raises LDAPInvalidCredentialsResult if the password is not theirs."""
    host, port, is_tls = _where(settings)
    server = Server(
        address,
        port,
        use_ssl=is_tls,
        tls=_Tls(host, settings.ca),
        get_info=NONE,
        connect_timeout=WITHIN_S,
    )
    connection = Connection(
        server,
        user=dn or None,
        password=password or None,
        authentication="SIMPLE" if dn else "ANONYMOUS",
        auto_bind="NONE",
        auto_referrals=False,
        raise_exceptions=True,
        receive_timeout=WITHIN_S,
        read_only=True,
    )
    try:
        connection.open()
        if not is_tls:
            connection.start_tls()
        connection.bind()
        yield connection
    finally:
        # Not `unbind`, which fails where a conversation broke off; and the library leaves it open.
        if connection.socket is not None:
            connection.socket.close()


def _user(searcher: Connection, settings: LdapSettings, login: str) -> Mapping[str, Any] | None:
    found = _search(
        searcher,
        settings.base_dn,
        settings.user_filter.replace("{login}", escape_filter_chars(login)),
        [settings.id_attribute, settings.email_attribute, settings.name_attribute, "memberOf"],
        at_most=2,
    )
    if len(found) > 1:
        raise _unusable("has several users of that login")
    return found[0] if found else None


def _groups(
    searcher: Connection, settings: LdapSettings, entry: Mapping[str, Any]
) -> frozenset[str]:
    named: list[str] = [str(dn) for dn in entry["attributes"].get("memberOf") or ()]
    if settings.group_filter:
        groups = _search(
            searcher,
            settings.group_base_dn or settings.base_dn,
            settings.group_filter.replace("{dn}", escape_filter_chars(entry["dn"])),
            ["cn"],
            at_most=MOST_GROUPS,
        )
        named += [group["dn"] for group in groups]
    # By either name: "cn=operators,ou=groups,dc=plant" or "operators".
    return frozenset([*named, *(_common_name(dn) for dn in named)])


def _search(
    searcher: Connection, base: str, filter_: str, attributes: list[str], *, at_most: int
) -> list[Mapping[str, Any]]:
    searcher.search(
        base,
        filter_,
        search_scope=SUBTREE,
        # Unknown to a directory are some of them; it leaves them out.
        attributes=attributes,
        size_limit=at_most,
        time_limit=WITHIN_S,
    )
    return [entry for entry in searcher.response or () if entry.get("type") == "searchResEntry"]


def _vouched(entry: Mapping[str, Any], settings: LdapSettings, groups: frozenset[str]) -> Vouched:
    attributes = entry["attributes"]
    email = _first(attributes.get(settings.email_attribute))
    if not email:
        raise _unusable(f"tells no email address: there is no {settings.email_attribute!r}")
    return Vouched(
        subject=_first(attributes.get(settings.id_attribute)) or str(entry["dn"]).casefold(),
        email=email,
        name=_first(attributes.get(settings.name_attribute)) or email.partition("@")[0],
        groups=groups,
    )


def _first(values: object) -> str:
    if isinstance(values, list | tuple):
        values = values[0] if values else ""
    if isinstance(values, bytes):
        return values.hex()
    return str(values or "")


def _common_name(dn: str) -> str:
    first = dn.partition(",")[0]
    return first.partition("=")[2] if first.lower().startswith("cn=") else dn


def _where(settings: LdapSettings) -> tuple[str, int, bool]:
    """Return host, port, and whether TLS is there from the first byte."""
    parts = urlsplit(settings.url)
    is_tls = parts.scheme == "ldaps"
    return parts.hostname or "", parts.port or (636 if is_tls else 389), is_tls


def _unusable(why: str) -> Unavailable:
    return Unavailable(f"the directory {why}", retry_after_s=10)
