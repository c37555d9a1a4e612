"""The event bus: one interface, two implementations (RabbitMQ, and a log in PostgreSQL for the edge)."""
