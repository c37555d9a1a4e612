"""Alerting as a process of its own."""

from libs.common.service import main
from services.alerting.app import build
from services.alerting.settings import Settings

if __name__ == "__main__":
    main("alerting", Settings(), build)
