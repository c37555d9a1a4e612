"""Where a user has logged in from: an address that is familiar is nobody's who guesses."""

from datetime import timedelta

FAMILIAR_FOR = timedelta(days=30)
