"""The historian: the time-series store, a data product of its own with one small library.

Who may do what is a GRANT in PostgreSQL: ingest writes, rules, ml and analytics read, retention moves.
"""
