"""PostgreSQL: one engine a role, the tenant bound when a transaction begins, one transaction a door."""
