"""How a limit is told."""

from services.gateway.domain.limit import Limit, Standing


def test_the_headers_are_those_of_the_draft() -> None:
    standing = Standing(Limit("user", 1000), is_allowed=True, remaining=12, reset_s=29.2)
    assert standing.headers() == [
        (b"ratelimit-policy", b'"user";q=1000;w=60'),
        (b"ratelimit", b'"user";r=12;t=30'),
    ]
