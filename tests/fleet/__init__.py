"""Devices of every protocol at work, with a ledger of what became of each point."""
