"""The rules that every container keeps, and the order in which they start."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cli.settings import example
from deploy.secrets import PASSWORDS, write_secrets
from libs.common.db.roles import SERVICES
from tests.contract.deploy.composition import COMPOSE, Composition, composed, secrets_of

SERVERS = ("postgres", "rabbitmq", "redis")
PROCESSES = (*SERVICES, "ingest-writer")
CONTAINERS = (*SERVERS, "migrate", *PROCESSES)

PUBLISHED = {"gateway": [8000], "ingest": [1883, 5683, 4840]}
"""The only doors of the installation: people and devices."""

SECRETS_OF_SERVERS = {
    "postgres": {"postgres_password"},
    "rabbitmq": {"rabbitmq_definitions.json"},
    "redis": {"redis_conf", "redis_password"},
    "migrate": {"database_admin_url", "database_passwords"},
}
"""The superuser is known to the migration alone: services' secrets bear the service's name."""

OUTWARD = {"gateway", "ingest", "alerting", "tenancy"}
"""Who is reached from outside, or calls out."""


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory) -> Composition:
    return composed(tmp_path_factory.mktemp("compose"))


def test_every_service_is_in_it(composition: Composition) -> None:
    assert set(composition["services"]) == set(CONTAINERS)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_may_do_nothing_it_need_not(composition: Composition, name: str) -> None:
    container = composition["services"][name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", container["user"]), "runs as root"
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "cap_add" not in container
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "network_mode", "devices"} & container.keys()
    assert any(entry.startswith("/tmp:") for entry in container["tmpfs"])


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_cannot_take_the_machine_down(composition: Composition, name: str) -> None:
    container = composition["services"][name]
    limits = container["deploy"]["resources"]["limits"]
    assert 0 < int(limits["memory"]) <= 2 << 30
    assert limits["pids"] > 0
    logging = container["logging"]
    assert logging["driver"] == "json-file"
    assert {"max-size", "max-file"} <= logging["options"].keys()


@pytest.mark.parametrize("name", CONTAINERS)
def test_only_people_and_devices_find_an_open_port(composition: Composition, name: str) -> None:
    ports = composition["services"][name].get("ports", [])
    assert [port["target"] for port in ports] == PUBLISHED.get(name, [])


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_servers_and_most_services_have_no_way_out(composition: Composition, name: str) -> None:
    networks = set(composition["services"][name]["networks"])
    assert networks == ({"inside", "outside"} if name in OUTWARD else {"inside"})
    assert composition["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("name", [*SERVERS, *PROCESSES])
def test_a_server_or_service_is_watched_and_comes_back(composition: Composition, name: str) -> None:
    container = composition["services"][name]
    assert container["restart"] == "unless-stopped"
    assert container["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_is_asked_whether_it_is_ready(composition: Composition, name: str) -> None:
    assert "/health/ready" in composition["services"][name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_starts_on_migrated_servers_that_answer(
    composition: Composition, name: str
) -> None:
    waits = {
        other: entry["condition"]
        for other, entry in composition["services"][name]["depends_on"].items()
    }
    assert waits["migrate"] == "service_completed_successfully"
    assert waits["postgres"] == waits["rabbitmq"] == "service_healthy"
    assert set(waits.values()) <= {"service_completed_successfully", "service_healthy"}


def test_the_migration_waits_for_the_database_and_ends(composition: Composition) -> None:
    migrate = composition["services"]["migrate"]
    assert migrate["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert migrate["restart"].startswith("on-failure")
    assert migrate["healthcheck"] == {"disable": True}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_has_time_to_finish_what_it_has_begun(
    composition: Composition, name: str
) -> None:
    assert composition["services"][name]["stop_grace_period"] == "40s"


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_runs_the_image_of_its_own_code(composition: Composition, name: str) -> None:
    service = name.removesuffix("-writer")
    container = composition["services"][name]
    assert container["image"] == f"iiot/{service}:latest"
    assert container["build"]["dockerfile"] == "deploy/Dockerfile"
    assert container["build"]["target"] == "service"
    assert container["build"]["args"] == {"SERVICE": service}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_of_a_named_version_and_keeps_its_data(
    composition: Composition, name: str
) -> None:
    container = composition["services"][name]
    assert re.fullmatch(rf"{name}:\d+\.\d+(-\w+)?", container["image"])
    assert [volume["type"] for volume in container["volumes"]] == ["volume"]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_service_is_given_its_own_secrets_and_no_others(
    composition: Composition, name: str
) -> None:
    service = name.removesuffix("-writer")
    secrets = secrets_of(composition, name)
    assert {
        f"{service}_database_url": f"{service}_database_url",
        f"{service}_engine_database_url": f"{service}_engine_database_url",
        "bus_url": f"{service}_bus_url",
    }.items() <= secrets.items()
    for file in secrets.values():
        assert file == "redis_url" or file.startswith(f"{service}_")


@pytest.mark.parametrize("name", SECRETS_OF_SERVERS)
def test_a_server_is_given_what_it_asks_for_and_no_more(
    composition: Composition, name: str
) -> None:
    assert set(secrets_of(composition, name)) == SECRETS_OF_SERVERS[name]


def test_every_secret_is_a_file_that_the_generator_writes(
    composition: Composition, tmp_path: Path
) -> None:
    write_secrets(tmp_path)
    files = {Path(secret["file"]).name for secret in composition["secrets"].values()}
    assert files <= {file.name for file in tmp_path.iterdir()}
    assert PASSWORDS not in files
    used = {file for name in CONTAINERS for file in secrets_of(composition, name).values()}
    assert used == files


def test_no_environment_holds_a_secret(composition: Composition) -> None:
    for name, variable, value in _environment(composition):
        secret_name = re.search("PASSWORD|PASSPHRASE|SECRET|TOKEN|_URL$", variable)
        assert not secret_name or value.startswith("/run/secrets/"), (name, variable)
        assert not re.search(r"//[^/@]*:[^/@]*@", value), (name, variable)


def test_no_password_is_written_in_the_file() -> None:
    assert not re.search(r"(?i)(password|passphrase|secret|token)\s*[:=]\s*['\"]?\w", _code())


def test_the_gateway_knows_where_every_service_is(composition: Composition) -> None:
    upstreams = json.loads(composition["services"]["gateway"]["environment"]["GATEWAY_UPSTREAMS"])
    assert upstreams == {
        service: f"http://{service}:8000" for service in SERVICES if service != "gateway"
    }


def test_one_ingest_hears_devices_and_the_other_writes(composition: Composition) -> None:
    services = composition["services"]
    assert services["ingest"]["environment"]["INGEST_WRITER"] == "false"
    assert services["ingest-writer"]["environment"]["INGEST_ENDPOINTS"] == "false"


def test_whoever_is_told_to_wait_by_the_broker_waits_for_hours() -> None:
    conf = (COMPOSE.parent / "deploy" / "rabbitmq.conf").read_text()
    assert "consumer_timeout = 14400000" in conf


def test_what_may_be_set_for_the_file_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", _code()))
    assert asked <= set(re.findall(r"^#(\w+)=", example(), re.MULTILINE))


def test_the_example_uncommented_reaches_the_services_unharmed(
    composition: Composition, tmp_path: Path
) -> None:
    given = dict(re.findall(r"^#([A-Z]\w+)=(.+)$", example(), re.MULTILINE))
    env = "".join(f"{name}={value}\n" for name, value in given.items())
    seen = composed(tmp_path, env=env)["services"]["rules"]["environment"]
    assert seen == given


def test_mqtt_over_tls_is_one_more_file(tmp_path: Path) -> None:
    ingest = composed(tmp_path, "deploy/compose.mqtt-tls.yml")["services"]["ingest"]
    assert [port["target"] for port in ingest["ports"]] == [1883, 5683, 4840, 8883]
    targets = {f"/run/secrets/{Path(s['source']).name}" for s in ingest["secrets"]}
    assert ingest["environment"]["INGEST_MQTT_TLS_CERTIFICATE"] in targets
    assert ingest["environment"]["INGEST_MQTT_TLS_KEY"] in targets


def test_amqp_for_devices_is_one_more_file(tmp_path: Path) -> None:
    """A broker apart from the bus, confined as all are; who devices are it asks ingest."""
    base = composed(tmp_path)["services"]
    services = composed(tmp_path, "deploy/compose.amqp.yml")["services"]
    broker, bus = services["rabbitmq-devices"], base["rabbitmq"]
    assert [port["target"] for port in broker["ports"]] == [5672], "the management API is ours"
    assert set(broker["networks"]) == {"inside", "outside"}
    own = {"configs", "hostname", "networks", "ports", "secrets", "volumes"}
    assert {name: broker[name] for name in broker.keys() - own} == {
        name: bus[name] for name in bus.keys() - own
    }
    assert {Path(config["target"]).name for config in broker["configs"]} == {
        "20-iiot.conf",
        "enabled_plugins",
    }
    changed = {name for name in services if services[name] != base.get(name)}
    assert changed == {"rabbitmq-devices", "ingest"}


def test_the_devices_broker_and_ingest_hold_the_same_secrets(tmp_path: Path) -> None:
    overlaid = composed(tmp_path, "deploy/compose.amqp.yml")
    write_secrets(tmp_path / "secrets")
    said = {
        container: {
            target: (tmp_path / "secrets" / file).read_text()
            for target, file in secrets_of(overlaid, container).items()
        }
        for container in ("rabbitmq-devices", "ingest")
    }
    broker, ingest = said["rabbitmq-devices"], said["ingest"]
    assert set(broker) == {"rabbitmq_devices_definitions.json", "30-auth.conf"}
    key = ingest["ingest_amqp_auth_key"]
    asked = re.findall(r"(?m)^auth_http\.(\w+)_path = (.+)$", broker["30-auth.conf"])
    assert dict(asked) == {
        what: f"http://ingest:8000/internal/broker/{what}?key={key}"
        for what in ("user", "vhost", "resource", "topic")
    }
    user = json.loads(broker["rabbitmq_devices_definitions.json"])["users"][0]["name"]
    for name in ("ingest_amqp_url", "ingest_amqp_management_url"):
        assert re.fullmatch(rf"\w+://{user}:\w+@rabbitmq-devices:\d+(/devices)?", ingest[name])


def _environment(composition: Composition) -> Iterator[tuple[str, str, str]]:
    for name, container in composition["services"].items():
        for variable, value in (container.get("environment") or {}).items():
            yield name, variable, str(value)


def _code() -> str:
    return re.sub(r"(?m)^\s*#.*$", "", COMPOSE.read_text())
