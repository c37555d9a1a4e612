"""The catalogue: what the services tell each other, one module per producing service."""
