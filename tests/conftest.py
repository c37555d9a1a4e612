"""What every test may ask for."""

from libs.common import log

pytest_plugins = [
    "tests.servers",
    "tests.database",
    "tests.amqp_broker",
    "tests.time_limit",
    "tests.whole_platforms",
]

# As in a service: what is logged in a test is redacted and plain, and costs little.
log.configure("test", level="info", pretty=False)
