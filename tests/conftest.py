"""What every test may ask for."""

from libs.common import log

pytest_plugins = ["tests.servers", "tests.database"]

# As in a service: what is logged in a test is redacted and plain, and costs little.
log.configure("test", level="info", pretty=False)
