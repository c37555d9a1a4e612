"""Running analytics as a process of its own."""

from libs.common.service import main
from services.analytics.app import build
from services.analytics.settings import Settings

if __name__ == "__main__":
    main("analytics", Settings(), build)
