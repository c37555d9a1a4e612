"""Times that tests write into readings."""

import time

_latest = 0


def next_ms() -> int:
    """Return now in ms since 1970, later than any this has returned before.

    Two readings of one metric at one ms are the same point, and a broker may take a message and
    its successor within one.
    """
    global _latest
    _latest = max(_latest + 1, time.time_ns() // 1_000_000)
    return _latest
