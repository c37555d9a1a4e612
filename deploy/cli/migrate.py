"""Migrating the platform's database, with the reasons why it may not work put plainly."""

import asyncio
from collections.abc import Callable

import asyncpg
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy.exc import DBAPIError

from libs.common.db.roles import LOGIN_ROLES
from libs.common.migrate import SECTIONS, migrate_all
from libs.common.settings import config


class Settings(BaseSettings):
    """What the job that migrates is configured by."""

    model_config = config("")

    database_admin_url: SecretStr
    """A superuser's: postgresql://postgres:…@host/iiot. For `iiot migrate` alone."""
    database_passwords: dict[str, SecretStr] = Field(default_factory=dict)
    """Passwords to set, by role, as JSON: {"ingest_rw": "…"}. A role not named keeps its own."""


class Refused(Exception):
    """It cannot be done; says what to do next."""


def migrate_platform(say: Callable[[str], object]) -> None:
    """Migrate, and say that it was done. Raises Refused."""
    settings = _settings()
    passwords = {
        role: password.get_secret_value() for role, password in settings.database_passwords.items()
    }
    if unknown := sorted(passwords.keys() - LOGIN_ROLES.keys()):
        raise Refused(
            f"DATABASE_PASSWORDS names roles that do not exist: {', '.join(unknown)}."
            f" There are: {', '.join(sorted(LOGIN_ROLES))}"
        )
    url = settings.database_admin_url.get_secret_value()
    if not url.startswith("postgresql://"):
        raise Refused("DATABASE_ADMIN_URL must begin with postgresql://")
    try:
        asyncio.run(migrate_all(url, passwords))
    except asyncpg.InvalidCatalogNameError as error:
        raise Refused(f"{error}. Create it: createdb iiot (as a superuser)") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError) as error:
        raise Refused(f"{error}. Look at DATABASE_ADMIN_URL") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused(f"{error}. DATABASE_ADMIN_URL must be a superuser's") from error
    except (OSError, asyncpg.CannotConnectNowError) as error:
        raise Refused(
            f"no connection to the database of DATABASE_ADMIN_URL: {error}. Is it running?"
        ) from error
    except DBAPIError as error:
        if "lock timeout" not in str(error.orig):
            raise
        raise Refused(
            "a table was in use for more than 10 s, and nobody is made to wait longer."
            " Nothing of this step was changed; run it again"
        ) from error
    say(f"up to date: {', '.join(SECTIONS)}")


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        wrong = {str(part["loc"][0]).upper(): part["msg"] for part in error.errors()}
    if "DATABASE_ADMIN_URL" in wrong:
        raise Refused("set DATABASE_ADMIN_URL to the URL of a superuser of PostgreSQL")
    # Not pydantic's own text: it would quote what was given, a password perhaps.
    raise Refused("; ".join(f"{name}: {message}" for name, message in wrong.items()))
