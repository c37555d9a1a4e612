"""The platform's database on a private server: its roles' passwords, its URLs, its newest version."""

import json
import secrets
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from deploy.local.servers import DatabaseServer
from libs.common.db.roles import LOGIN_ROLES
from libs.common.migrate import migrate_all

DATABASE = "iiot"
SEALING_KEYS = {
    "ingest": ("credentials_key", "ingest_credentials_key"),
    "tenancy": ("sealing_key", "tenancy_sealing_key"),
}
"""What services seal the secrets with that they must read again: by which setting each has it, and
its name in the file, beside the roles."""


class PlatformDatabase:
    """The database `iiot` on a server, with a password for each role kept in a file of ours."""

    def __init__(self, server: DatabaseServer, passwords: Path) -> None:
        self._server = server
        kept = _keep_passwords(passwords)
        self._passwords = {role: kept[role] for role in LOGIN_ROLES}
        self._keys = {
            service: {setting: kept[name]} for service, (setting, name) in SEALING_KEYS.items()
        }

    @property
    def admin_url(self) -> str:
        """The URL as the server's superuser."""
        return self._server.url_of(DATABASE)

    def url(self, role: str) -> str:
        """Return the URL for a role."""
        parts = urlsplit(self.admin_url)
        host = parts.netloc.rpartition("@")[2]
        password = quote(self._passwords[role], safe="")
        return urlunsplit(parts._replace(netloc=f"{role}:{password}@{host}"))

    def of_service(self, service: str) -> dict[str, str]:
        """Return the two URLs that every service has, and the key of one that seals, by their settings."""
        urls = {
            "database_url": self.url(f"{service}_rw"),
            "engine_database_url": self.url(f"{service}_engine"),
        }
        return urls | self._keys.get(service, {})

    async def prepare(self) -> None:
        """Make the database if it is missing, and bring it to the newest version."""
        connection = await asyncpg.connect(self._server.url_of("postgres"))
        try:
            if not await connection.fetchval(
                "SELECT 1 FROM pg_database WHERE datname = $1", DATABASE
            ):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
        await migrate_all(self.admin_url, self._passwords)


def _keep_passwords(file: Path) -> dict[str, str]:
    """Return a password for each role, and the keys: made once, kept in a file that only we may read."""
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    names = (*LOGIN_ROLES, *(name for _, name in SEALING_KEYS.values()))
    passwords = {name: kept.get(name) or secrets.token_urlsafe(24) for name in names}
    if passwords != kept:
        file.touch(mode=0o600)
        file.write_text(json.dumps(passwords))
    return passwords
