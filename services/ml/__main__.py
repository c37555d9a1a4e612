"""Running ml as a process of its own."""

from libs.common.service import main
from services.ml.app import build
from services.ml.settings import Settings

if __name__ == "__main__":
    main("ml", Settings(), build)
