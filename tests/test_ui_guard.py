"""The gate: which paths exist, who passes, what every reply carries; cookies and slowed logins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from assistant.ui.auth import Access, Throttle, Tokens
from assistant.ui.guard import COOKIE, HEADERS, Guard
from assistant.users import Users

GRADIO_PATHS = [
    "/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/upload",
    "/gradio_api/proxy=http://example.org/", "/gradio_api/queue/data?session_hash=x", "/gradio_api/queue/join",
    "/gradio_api/heartbeat/x", "/gradio_api/vibe-code", "/monitoring", "/theme.css", "/manifest.json", "/svelte/x.js",
    "/assets/../../../etc/passwd", "/gradio_api/run/turn", "/gradio_api/component_server", "/gradio_api/runs",
    "/gradio_api/deep_link", "/gradio_api/custom_component/x/y/z/../../secret", "/gradio_api/stream/x",
    "/gradio_api/process_recording", "/gradio_api/cancel", "/gradio_api/reset", "/pwa_icon", "/docs", "/openapi.json",
]  # fmt: skip


async def echo(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    if request.url.path == "/api/broken":
        raise RuntimeError("secret detail")
    headers = {"access-control-allow-origin": "*"}
    await JSONResponse({"user": request.state.user}, headers=headers)(scope, receive, send)


def client(tmp_path: Path, access: Access | None = None, base: str = "http://127.0.0.1:7860") -> TestClient:
    access = access or Access("local", None, frozenset({"127.0.0.1", "localhost"}))
    guard = Guard(echo, access, Tokens(tmp_path / "key", access.users))
    return TestClient(guard, base_url=base, follow_redirects=False)


@pytest.fixture
def users(tmp_path: Path) -> Users:
    users = Users(tmp_path / "users.json")
    users.add("ada", "correct horse")
    users.add("bob", "battery staple")
    return users


@pytest.mark.parametrize("path", GRADIO_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_gradios_other_routes_do_not_exist(tmp_path: Path, path: str, method: str) -> None:
    assert client(tmp_path).request(method, path).status_code == 404


def test_the_page_and_its_four_gradio_routes_do(tmp_path: Path) -> None:
    web = client(tmp_path)
    for path in ("/", "/api/sessions", "/static/js/main.js", "/gradio_api/call/turn/" + "0" * 32):
        assert web.get(path).json() == {"user": "local"}
    assert web.post("/gradio_api/call/turn").status_code == 200


def test_every_reply_carries_the_headers_and_allows_no_other_origin(tmp_path: Path) -> None:
    for path in ("/", "/nowhere", "/api/broken"):
        reply = client(tmp_path).get(path)
        for name, value in HEADERS.items():
            assert reply.headers[name] == value
        assert "access-control-allow-origin" not in reply.headers
        assert reply.headers["cache-control"] == "no-store"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_an_unforeseen_failure_is_one_sentence_with_a_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply = client(tmp_path).get("/api/broken")
    assert reply.status_code == 500
    assert "secret detail" not in reply.text
    reference = reply.json()["message"].rsplit(" ", 1)[1].strip(".")
    assert f"[{reference}]" in caplog.text
    assert "secret detail" in caplog.text


def test_a_foreign_host_name_reaches_nothing(tmp_path: Path) -> None:
    assert client(tmp_path, base="http://evil.example:7860").get("/api/sessions").status_code == 421
    assert client(tmp_path, base="http://localhost:1").get("/api/sessions").status_code == 200


def test_another_site_changes_nothing(tmp_path: Path) -> None:
    web = client(tmp_path)
    assert web.post("/api/undo", headers={"origin": "http://evil.example"}).status_code == 403
    assert web.post("/api/undo", headers={"origin": "null"}).status_code == 403
    assert web.post("/api/undo", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def test_login_mode_lets_only_good_cookies_in(tmp_path: Path, users: Users) -> None:
    access = Access("login", users)
    tokens = Tokens(tmp_path / "key", users)
    web = client(tmp_path, access)
    assert web.get("/").headers["location"] == "/login"
    assert web.get("/api/sessions").status_code == 401
    assert web.post("/gradio_api/call/turn").status_code == 401
    assert web.get("/static/theme.css").status_code == 200
    good = tokens.login("ada")
    assert web.get("/api/sessions", headers={"cookie": f"{COOKIE}={good}"}).json() == {"user": "ada"}
    name, end, mark = good.split(".")
    other = tokens.login("bob").split(".")[0]
    for forged in (f"{other}.{end}.{mark}", f"{name}.9{end}.{mark}", f"{name}.{end}.{'0' * 64}", "x", "..", "é.1.2"):
        web.cookies.clear()
        assert web.get("/api/sessions", headers={"cookie": f"{COOKIE}={forged}".encode()}).status_code == 401


def test_a_new_password_or_removal_ends_old_logins(tmp_path: Path, users: Users) -> None:
    tokens = Tokens(tmp_path / "key", users)
    ada, bob = tokens.login("ada"), tokens.login("bob")
    users.add("ada", "a new password")
    users.remove("bob")
    assert tokens.user(ada, "login") is None
    assert tokens.user(bob, "login") is None


def test_logins_survive_a_restart(tmp_path: Path, users: Users) -> None:
    cookie = Tokens(tmp_path / "key", users).login("ada")
    assert Tokens(tmp_path / "key", users).user(cookie, "login") == "ada"
    assert Tokens(tmp_path / "other", users).user(cookie, "login") is None
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0


def test_each_visitor_of_a_public_chat_is_somebody_else(tmp_path: Path) -> None:
    access = Access("public")
    first, second = client(tmp_path, access), client(tmp_path, access)
    one = first.get("/")
    assert "HttpOnly" in one.headers["set-cookie"]
    assert "SameSite=Lax" in one.headers["set-cookie"]
    assert "Secure" not in one.headers["set-cookie"]
    assert first.get("/api/sessions").json() == one.json()
    assert second.get("/").json() != one.json()
    assert one.json()["user"].startswith("visitor-")


def test_cookies_are_secure_behind_tls(tmp_path: Path) -> None:
    reply = client(tmp_path, Access("public")).get("/", headers={"x-forwarded-proto": "https"})
    assert "; Secure" in reply.headers["set-cookie"]
    assert "strict-transport-security" in reply.headers


def test_a_visitors_cookie_is_no_login_and_the_reverse(tmp_path: Path, users: Users) -> None:
    tokens = Tokens(tmp_path / "key", users)
    _, visitor = tokens.visitor()
    assert tokens.user(visitor, "login") is None
    assert tokens.user(tokens.login("ada"), "public") is None


def test_wrong_passwords_wait_longer_and_longer() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    waits = []
    for _ in range(10):
        throttle.failed("name:ada", "from:1.2.3.4")
        waits.append(throttle.wait_s("name:ada"))
    assert waits == [0, 0, 0, 2, 4, 8, 16, 32, 60, 60]
    assert throttle.wait_s("from:1.2.3.4") == 60
    assert throttle.wait_s("name:bob") == 0
    now[0] = 61
    assert throttle.wait_s("name:ada") <= 0
    throttle.succeeded("name:ada")
    throttle.failed("name:ada")
    assert throttle.wait_s("name:ada") == 0


def test_the_throttle_remembers_no_more_than_it_should() -> None:
    throttle = Throttle()
    for number in range(10_000):
        throttle.failed(f"name:{number}")
    assert len(throttle._failures) == 4096
