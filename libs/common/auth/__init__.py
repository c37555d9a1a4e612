"""Who is asking, and whether they may: verified in every service, declared on every route."""
