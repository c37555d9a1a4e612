"""The gateway as a process of its own."""

from libs.common.service import main
from services.gateway.app import build
from services.gateway.settings import Settings

if __name__ == "__main__":
    main("gateway", Settings(), build)
