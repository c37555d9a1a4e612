"""What every protocol by which devices come to us looks like to `app.py`."""

from typing import Protocol

from starlette.datastructures import State


class Door(Protocol):
    """Where devices come in by one protocol, made of its settings and the reception. Opened once."""

    async def open(self, state: State) -> None:
        """Let devices in, as far as the settings want it.

        Lays out on the app's `state` what others look for there: `<name>_port`, for each port that is
        opened by the setting of that name, the number it has.
        """
        ...

    async def stop(self) -> None:
        """Let nobody in any more, and end; also what was opened only in part, or not at all."""
        ...
