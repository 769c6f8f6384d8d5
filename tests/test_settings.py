"""Settings: defaults, the environment, and errors that name the remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from assistant.errors import SettingsError
from assistant.settings import ROOT, Settings, describe


def test_the_environment_is_read_over_the_file_and_under_the_overrides(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text('# a comment\nTHIMBLE_TOP_K=3\nexport THIMBLE_MODEL="none"\nTHIMBLE_SEED=7\n')
    environ = {"THIMBLE_TOP_K": "5", "PATH": "/bin"}
    settings = Settings.from_environment(environ, env_file=env_file, seed=9, top_p=None)
    assert (settings.top_k, settings.model, settings.seed, settings.top_p) == (5, "none", 9, 1.0)


def test_making_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THIMBLE_TOP_K", "3")
    assert Settings().top_k == 8


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"THIMBLE_TOPK": "3"}, "did you mean THIMBLE_TOP_K"),
        ({"THIMBLE_WHATEVER_ELSE": "3"}, r"\.env\.example"),
        ({"THIMBLE_TOP_K": "many"}, "top_k"),
        ({"THIMBLE_TOP_K": "0"}, "top_k: 0 is out of range, it takes from 1 to 100"),
        ({"THIMBLE_DTYPE": "int7"}, "auto, bf16, fp32, int8"),
        ({"THIMBLE_MEMORY_BUDGET": "big"}, "memory_budget"),
        ({"THIMBLE_MEMORY_BUDGET": "-1GiB"}, "negative"),
        ({"THIMBLE_SPECULATION": "perhaps"}, "on or off"),
        ({"THIMBLE_MAX_FILE_BYTES": "12 XB"}, "max_file_bytes"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_do(environ: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.from_environment(environ, env_file=tmp_path / "absent")


def test_a_line_that_is_no_setting_is_named_by_file_and_number(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("THIMBLE_TOP_K=3\njust words\n")
    with pytest.raises(SettingsError, match=r"\.env, line 2"):
        Settings.from_environment({}, env_file=env_file)


def test_sizes_take_units() -> None:
    assert Settings(max_file_bytes="2MiB").max_file_bytes == 2 * 2**20  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().top_k = 3  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    for name, default, doc in describe():
        assert doc.endswith("."), name
        assert default, name
        assert str(ROOT) not in default, name
