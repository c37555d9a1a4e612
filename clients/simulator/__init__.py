"""A pumping station that does not exist: its physics, its faults and its devices on real sockets."""
