"""Passwords and URLs for docker-compose.yml: `python3 -m deploy.secrets`. Needs Python alone.

Run it as often as you like: what exists stays. A password lives in `passwords.json`, which no
container sees; all other files are written from it, so that to change a password is to remove its
line there, run this again, and `docker compose up -d --force-recreate`. (PostgreSQL's superuser is
the exception: it keeps the password of its first start, until ALTER ROLE.)
"""

import argparse
import base64
import hashlib
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

SERVICES = (
    "gateway",
    "tenancy",
    "ingest",
    "rules",
    "analytics",
    "ml",
    "alerting",
    "retention",
)
ROLES = (
    *(f"{service}_rw" for service in SERVICES),
    *(f"{service}_engine" for service in SERVICES),
    "historian_writer",
    "iiot_observer",
)

PASSWORDS = "passwords.json"
YOURS = ("alerting_smtp_password", "tenancy_smtp_password")
"""Made empty, for people to fill in; never written again."""

RABBITMQ_HOST = "iiot"  # the virtual host
DEVICES_BROKER = "rabbitmq-devices"
"""The broker that devices publish to, of deploy/compose.amqp.yml."""
DEVICES_HOST = "devices"
DEVICES_USER = "ingest-devices"
ASKED = ("user", "vhost", "resource", "topic")
"""What that broker asks ingest about."""
REDIS_MEMORY = "128mb"


def main(words: list[str] | None = None) -> int:
    """Write the folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.secrets", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("secrets"))
    folder: Path = parser.parse_args(words).folder
    try:
        written = write_secrets(folder)
    except (OSError, json.JSONDecodeError) as error:
        print(f"{folder}: {error}\nNothing was thrown away; mend that and run again.")
        return 1
    print(f"{folder}: {written} written" if written else f"{folder}: complete, nothing changed")
    print(f"The first administrator's password: {folder / 'tenancy_first_admin_password'}")
    return 0


def write_secrets(folder: Path, draw: Callable[[int], str] = secrets.token_hex) -> int:
    """Bring the folder up to date; return how many files were written.

    The folder is ours alone (0700), and that is what keeps others of this machine out. The files in
    it are readable by all, because a container sees one through a mount that keeps its mode and
    owner, and runs as a user of its own. `passwords.json` is never mounted: 0600.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    kept = folder / PASSWORDS
    known: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    passwords = known | {
        name: draw(size) for name, size in _wanted().items() if not known.get(name)
    }
    written = 0
    if passwords != known:
        _write(kept, json.dumps(passwords, indent=2) + "\n", mode=0o600)
        written += 1
    for name, text in _files(passwords).items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            _write(file, text, mode=0o444)
            written += 1
    for name in YOURS:
        if not (folder / name).exists():
            _write(folder / name, "", mode=0o644)
            written += 1
    return written


def _wanted() -> dict[str, int]:
    """Return what has to be drawn: names, and how many random bytes."""
    return {
        "postgres": 24,
        **dict.fromkeys(ROLES, 24),
        "redis": 24,
        **{f"rabbitmq_{service}": 24 for service in SERVICES},
        # A hash is salted; drawn once, so that the definitions stay as they are.
        **{f"rabbitmq_{service}_salt": 4 for service in SERVICES},
        "rabbitmq_devices": 24,
        "rabbitmq_devices_salt": 4,
        "ingest_amqp_auth_key": 32,
        "gateway_key_passphrase": 32,
        "ingest_credentials_key": 32,
        "tenancy_sealing_key": 32,
        "tenancy_first_admin": 12,
    }


def _files(passwords: dict[str, str]) -> dict[str, str]:
    """Return what each file says. Passwords are hexadecimal: nothing to quote in a URL."""

    def database(role: str) -> str:
        return f"postgresql://{role}:{passwords[role]}@postgres:5432/iiot"

    redis = passwords["redis"]
    devices, auth_key = passwords["rabbitmq_devices"], passwords["ingest_amqp_auth_key"]
    return {
        ".gitignore": "*\n",
        "postgres_password": passwords["postgres"],
        "database_admin_url": f"postgresql://postgres:{passwords['postgres']}@postgres:5432/iiot",
        "database_passwords": json.dumps({role: passwords[role] for role in ROLES}),
        "ingest_historian_writer_url": database("historian_writer"),
        "redis_password": redis,
        "redis_url": f"redis://:{redis}@redis:6379/0",
        # What is counted must not be evicted, and outlives a restart.
        "redis_conf": f'requirepass {redis}\ndir /data\nappendonly yes\nsave ""\n'
        f"maxmemory {REDIS_MEMORY}\nmaxmemory-policy noeviction\n",
        "rabbitmq_definitions.json": json.dumps(rabbitmq_definitions(passwords), indent=2) + "\n",
        "rabbitmq_devices_definitions.json": json.dumps(
            devices_broker_definitions(devices, passwords["rabbitmq_devices_salt"]), indent=2
        )
        + "\n",
        "rabbitmq_devices_auth.conf": devices_broker_asks("http://ingest:8000", auth_key),
        "ingest_amqp_url": f"amqp://{DEVICES_USER}:{devices}@{DEVICES_BROKER}:5672/{DEVICES_HOST}",
        "ingest_amqp_management_url": f"http://{DEVICES_USER}:{devices}@{DEVICES_BROKER}:15672",
        "ingest_amqp_auth_key": auth_key,
        "gateway_key_passphrase": passwords["gateway_key_passphrase"],
        "ingest_credentials_key": passwords["ingest_credentials_key"],
        "tenancy_sealing_key": passwords["tenancy_sealing_key"],
        "tenancy_first_admin_password": passwords["tenancy_first_admin"],
        **{f"{service}_database_url": database(f"{service}_rw") for service in SERVICES},
        **{f"{service}_engine_database_url": database(f"{service}_engine") for service in SERVICES},
        **{
            f"{service}_bus_url": f"amqp://{service}:{passwords[f'rabbitmq_{service}']}"
            f"@rabbitmq:5672/{RABBITMQ_HOST}"
            for service in SERVICES
        },
    }


def rabbitmq_definitions(passwords: dict[str, str]) -> dict[str, object]:
    """Return the broker's users: one a service, who may use the exchanges and its own queues.

    Own queues are those called `<service>.…`, and the unnamed ones of its connections.
    """
    own = {service: rf"^(iiot\..*|amq\.gen-.*|{service}\..*)$" for service in SERVICES}
    return {
        "vhosts": [{"name": RABBITMQ_HOST}],
        "users": [
            {
                "name": service,
                "password_hash": _rabbitmq_hash(
                    passwords[f"rabbitmq_{service}"],
                    bytes.fromhex(passwords[f"rabbitmq_{service}_salt"]),
                ),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for service in SERVICES
        ],
        "permissions": [
            {
                "user": service,
                "vhost": RABBITMQ_HOST,
                "configure": own[service],
                "write": own[service],
                "read": own[service],
            }
            for service in SERVICES
        ],
    }


def devices_broker_definitions(password: str, salt: str) -> dict[str, object]:
    """Return what the devices' broker holds: ingest's own user. Devices are none of its users.

    `administrator`, to cut the connections of who may not go on; `impersonator`, to put dead letters
    back in the name of the device that wrote them. `salt` is hexadecimal.
    """
    return {
        "vhosts": [{"name": DEVICES_HOST}],
        "users": [
            {
                "name": DEVICES_USER,
                "password_hash": _rabbitmq_hash(password, bytes.fromhex(salt)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator", "impersonator"],
            }
        ],
        "permissions": [
            {
                "user": DEVICES_USER,
                "vhost": DEVICES_HOST,
                "configure": ".*",
                "write": ".*",
                "read": ".*",
            }
        ],
    }


def devices_broker_asks(ingest: str, auth_key: str) -> str:
    """Return the lines of rabbitmq.conf that say where ingest answers, such as http://ingest:8000."""
    return "".join(
        f"auth_http.{what}_path = {ingest}/internal/broker/{what}?key={auth_key}\n"
        for what in ASKED
    )


def _rabbitmq_hash(password: str, salt: bytes) -> str:
    """Hash as RabbitMQ stores passwords: base64 of the salt (4 bytes) and SHA-256 of both."""
    digest = hashlib.sha256(salt + password.encode()).digest()
    return base64.b64encode(salt + digest).decode()


def _write(file: Path, text: str, *, mode: int) -> None:
    """Replace a file as a whole: never half of one, never for a moment readable by more."""
    draft = file.with_name(f".{file.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(file)


if __name__ == "__main__":
    sys.exit(main())
