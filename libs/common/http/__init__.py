"""The HTTP door, the same for every service: application factory, problems, health, metrics, pages."""
