"""What the edge's bus shows to Prometheus, looked up when it is asked for."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from libs.common.bus.local import LocalBus


class LocalBusMetrics(Collector):
    """The metrics of one local bus; register it once in the process."""

    def __init__(self, bus: LocalBus) -> None:
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        """Give the metrics; what lies on disk is as old as the last look at it."""
        bus, kept = self._bus, self._bus.kept
        size = GaugeMetricFamily("bus_bytes", "What the bus keeps on disk.", labels=["table"])
        size.add_metric(["log"], kept.log_bytes)
        size.add_metric(["retries"], kept.retries_bytes)
        size.add_metric(["dead_letters"], kept.dead_letters_bytes)
        yield size
        yield GaugeMetricFamily(
            "bus_max_bytes", "At which publishing is refused.", value=bus.max_bytes
        )
        behind = GaugeMetricFamily(
            "bus_behind_messages",
            "Messages in the log that a subscription has not passed yet.",
            labels=["subscription"],
        )
        for name, count in bus.behind().items():
            behind.add_metric([name], count)
        yield behind
        letters = GaugeMetricFamily(
            "bus_dead_letters", "Messages that were given up.", labels=["subscription"]
        )
        for name, count in kept.dead_letters.items():
            letters.add_metric([name], count)
        yield letters
        messages = CounterMetricFamily(
            "bus_messages",
            "Messages brought to an end, and tries that failed.",
            labels=["subscription", "outcome"],
        )
        for name, counts in bus.counts().items():
            messages.add_metric([name, "handled"], counts.handled)
            messages.add_metric([name, "retried"], counts.retried)
            messages.add_metric([name, "dead"], counts.dead)
        yield messages
