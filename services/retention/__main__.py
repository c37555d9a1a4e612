"""Running retention as a process of its own."""

from libs.common.service import main
from services.retention.app import build
from services.retention.settings import Settings

if __name__ == "__main__":
    main("retention", Settings(), build)
