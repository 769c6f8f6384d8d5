"""The users file: hashing, checking, removing, and what it refuses."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from assistant.errors import AccessError, SettingsError
from assistant.users import Users, make_password


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "users.json")


def test_add_verify_list_remove(users: Users) -> None:
    assert users.names() == []
    assert users.add("ada", "correct horse") is True
    assert users.add("ada", "battery staple") is False
    assert users.verify("ada", "battery staple")
    assert not users.verify("ada", "correct horse")
    assert not users.verify("bob", "battery staple")
    assert users.names() == ["ada"]
    users.remove("ada")
    assert not users.verify("ada", "battery staple")
    with pytest.raises(AccessError, match="no user 'ada'"):
        users.remove("ada")


def test_file_holds_argon2_hashes_for_its_owner_only(users: Users) -> None:
    users.add("ada", "correct horse")
    text = users.path.read_text()
    assert "correct horse" not in text
    assert json.loads(text)["users"]["ada"].startswith("$argon2id$")
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o600


def test_stamp_follows_the_password(users: Users) -> None:
    assert users.stamp("ada") is None
    users.add("ada", "correct horse")
    first = users.stamp("ada")
    users.add("ada", "battery staple")
    assert first is not None
    assert users.stamp("ada") != first


@pytest.mark.parametrize("name", ["", "local", "visitor-1", "a b", "../x", "a" * 65, "<b>", "-x"])
def test_bad_names_are_refused(users: Users, name: str) -> None:
    with pytest.raises(SettingsError, match="can't be a user name"):
        users.add(name, "long enough")


def test_short_password_is_refused(users: Users) -> None:
    with pytest.raises(SettingsError, match="8 to 1024"):
        users.add("ada", "short")


def test_extra_users_are_never_written(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json", {"guest": "for today only"})
    assert users.verify("guest", "for today only")
    users.add("ada", "correct horse")
    assert "guest" not in (tmp_path / "users.json").read_text()
    assert users.names() == ["ada", "guest"]


@pytest.mark.parametrize("content", ["{", "[]", '{"users": {"a": 1}}'])
def test_damaged_file_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"users\.json"):
        Users(path).add("ada", "correct horse")
    assert path.read_text() == content


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    def add(name: str) -> None:
        Users(tmp_path / "users.json").add(name, "correct horse")

    threads = [threading.Thread(target=add, args=(f"user{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Users(tmp_path / "users.json").names() == [f"user{i}" for i in range(6)]


def test_made_passwords_differ_and_are_long() -> None:
    assert len({make_password() for _ in range(50)}) == 50
    assert len(make_password()) == 23
