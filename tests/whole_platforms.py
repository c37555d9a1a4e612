"""Which tests a worker of pytest-xdist gets together: those of a file; and all that run whole platforms.

A platform is a dozen processes under load. One at a time leaves the machine enough for the tests
of the other workers, which wait for conditions but not for ever.
"""

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # has none

_PLATFORMS = ("tests/faults/", "tests/system/")


class _OnePlatformAtATime(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_PLATFORMS):
            return "whole platforms"
        file: str = super()._split_scope(nodeid)
        return file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    """Take the place of `--dist loadfile`; anything else asked for is left to xdist."""
    if config.getoption("dist") != "loadfile":
        return None
    return _OnePlatformAtATime(config, log)
