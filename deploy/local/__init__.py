"""Private servers: PostgreSQL, RabbitMQ, Redis and Mosquitto for the edge, the tests and `make cluster`."""
