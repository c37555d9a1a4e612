"""Ingest as a process of its own."""

from libs.common.service import main
from services.ingest.app import build
from services.ingest.settings import Settings

if __name__ == "__main__":
    main("ingest", Settings(), build)
