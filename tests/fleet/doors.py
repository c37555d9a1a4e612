"""Where a cluster's devices come in: every door of ingest on a port of its own."""

from clients.simulator.protocols import PORTS
from deploy.local.processes import free_port


def free_doors(*besides: str) -> dict[str, int]:
    """Return a free port for each protocol with a door of its own, `besides` left out."""
    return {name: free_port() for name in PORTS if name not in besides}


def settings_of(ports: dict[str, int]) -> dict[str, str]:
    """Return ingest's settings that open these doors."""
    return {f"INGEST_{name.replace('-', '_').upper()}_PORT": str(p) for name, p in ports.items()}
