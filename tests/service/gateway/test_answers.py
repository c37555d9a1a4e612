"""How answers travel: not again if the client has them, and small."""

import gzip
import json

import httpx2

from tests.service.gateway.conftest import World, serving

LONG = json.dumps([{"device": n, "status": "online"} for n in range(400)]).encode()


async def test_what_a_client_has_is_not_sent_again(world: World) -> None:
    headers = await world.headers(world.person())
    first = await world.http.get("/api/v1/devices", headers=headers)
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    assert first.headers["cache-control"] == "no-cache, private"
    for given in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = await world.http.get("/api/v1/devices", headers={**headers, "if-none-match": given})
        assert again.status_code == 304, given
        assert again.content == b""
        assert again.headers["etag"] == tag
        assert "content-type" not in again.headers
        assert "ratelimit" in again.headers
    world.service.chunks = [b'{"ok":false}']
    changed = await world.http.get("/api/v1/devices", headers={**headers, "if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
    # A service's own tag stays, and holds.
    world.service.headers = [(b"content-type", b"application/json"), (b"etag", b'"7"')]
    own = await world.http.get("/api/v1/devices", headers=headers)
    assert own.headers["etag"] == '"7"'
    same = await world.http.get("/api/v1/devices", headers={**headers, "if-none-match": 'W/"7"'})
    assert same.status_code == 304
    # Only what reads, and only what went well.
    world.service.headers = [(b"content-type", b"application/json")]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        wrote = await world.http.request(method, "/api/v1/devices", headers=headers)
        assert "etag" not in wrote.headers
    world.service.status = 404
    assert "etag" not in (await world.http.get("/api/v1/devices", headers=headers)).headers


async def test_long_answers_are_packed_for_who_unpacks_and_secrets_never(world: World) -> None:
    person = world.person()
    headers = await world.headers(person)
    world.service.chunks = [LONG]
    async with serving(world.app) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, trust_env=False) as http:

            async def raw(
                path: str, accept: str, method: str = "GET"
            ) -> tuple[httpx2.Response, bytes]:
                given = {**headers, "accept-encoding": accept}
                async with http.stream(method, path, headers=given) as answer:
                    return answer, b"".join([piece async for piece in answer.aiter_raw()])

            packed, body = await raw("/api/v1/devices", "br;q=1, gzip;q=0.5")
            assert packed.headers["content-encoding"] == "gzip"
            assert int(packed.headers["content-length"]) == len(body) < len(LONG) / 5
            assert gzip.decompress(body) == LONG
            assert "accept-encoding" in packed.headers["vary"].lower()
            for accept in ("identity", "gzip;q=0", "br", "gzip;q=0, *"):
                plain, body = await raw("/api/v1/devices", accept)
                assert "content-encoding" not in plain.headers, accept
                assert body == LONG
            assert "accept-encoding" in plain.headers["vary"].lower()

            created, body = await raw("/api/v1/devices", "gzip", "POST")
            assert "content-encoding" not in created.headers
            me, _ = await raw("/api/v1/auth/me", "gzip")
            assert "content-encoding" not in me.headers

            # Not twice, not pictures, and a stream stays one.
            world.service.headers = [(b"content-type", b"text/csv"), (b"content-encoding", b"br")]
            assert (await raw("/api/v1/devices", "gzip"))[0].headers["content-encoding"] == "br"
            world.service.headers = [(b"content-type", b"image/png")]
            assert "content-encoding" not in (await raw("/api/v1/devices", "gzip"))[0].headers
            world.service.headers = [(b"content-type", b"text/csv")]
            world.service.chunks = [b"time,value\n", b"1,2\n" * 100, b"3,4\n"]
            streamed, body = await raw("/api/v1/devices", "gzip")
            assert "etag" not in streamed.headers
            assert gzip.decompress(body) == b"".join(world.service.chunks)


async def test_head_is_get_without_the_body(world: World) -> None:
    headers = {**await world.headers(world.person()), "accept-encoding": "identity"}
    world.service.chunks = [LONG]
    async with serving(world.app) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, trust_env=False) as http:
            got = await http.get("/api/v1/devices", headers=headers)
            head = await http.head("/api/v1/devices", headers=headers)
            assert head.status_code == 200
            assert head.content == b""
            for name in ("etag", "content-type", "cache-control", "vary"):
                assert head.headers[name] == got.headers[name]
            assert world.service.asked[-1].method == "GET"
            # Whoever is not let in is told so without a body as well, and the connection goes on.
            refused = await http.head("/api/v1/devices")
            assert refused.status_code == 401
            assert refused.content == b""
            assert (await http.get("/api/v1/devices", headers=headers)).content == LONG


async def test_what_is_asked_in_a_way_that_there_is_not_is_said_so(world: World) -> None:
    headers = await world.headers(world.person())
    wrong = await world.http.request("PUT", "/api/v1/auth/login", headers=headers)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    packed = await world.http.post(
        "/api/v1/rules", content=b"\x1f\x8b", headers={**headers, "content-encoding": "gzip"}
    )
    assert packed.status_code == 415
    assert not world.service.asked
