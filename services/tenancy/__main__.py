"""Tenancy as a process of its own."""

from libs.common.service import main
from services.tenancy.app import build
from services.tenancy.settings import Settings

if __name__ == "__main__":
    main("tenancy", Settings(), build)
