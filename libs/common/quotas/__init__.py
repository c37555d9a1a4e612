"""What a tenant may have and use at most, as its plan says: told by tenancy, enforced by who counts."""
