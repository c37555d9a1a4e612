"""Running rules as a process of its own."""

from libs.common.service import main
from services.rules.app import build
from services.rules.settings import Settings

if __name__ == "__main__":
    main("rules", Settings(), build)
