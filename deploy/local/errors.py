"""What may go wrong with a private server; each message is for the person at the terminal."""


class ServerError(Exception):
    """Something about a private server; the message says what, and what to do."""


class ServerMissing(ServerError):
    """No binaries of the server on this machine. One line that says what to install."""


class ServerFailed(ServerError):
    """It ended, or was not ready in time. Carries the last lines of its log."""


class ServerBusy(ServerError):
    """Another live process owns the server's directory."""
