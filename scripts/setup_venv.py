"""Create or update a virtual environment from a lock file; called by the Makefile.

``setup_venv.py FOLDER LOCK [PACKAGE …]`` first checks what an installation needs, so that it fails
at once and in one line. It rebuilds an environment that is broken or of another Python, and does
nothing if the environment already has what the lock file lists. It runs on any Python 3.7 or later,
in order to say which ones are supported.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

OLDEST, NEWEST = (3, 11), (3, 13)
# TensorFlow publishes wheels for these.
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}


def dotted(version: "tuple[int, ...]") -> str:
    """Return a version such as ``3.11``."""
    return ".".join(map(str, version[:2]))


def problem() -> "Optional[str]":  # noqa: UP045 - runs on old Pythons
    """Return why nothing can be installed with this Python, with a remedy; None if it can."""
    version = tuple(sys.version_info[:2])
    here = (platform.system(), platform.machine())
    if not OLDEST <= version <= NEWEST:
        return (
            f"Python {dotted(version)} is not supported; install Python {dotted(OLDEST)} to "
            f"{dotted(NEWEST)} and run make PYTHON=python{dotted(OLDEST)}"
        )
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is not supported; use CPython"
    if here not in PLATFORMS:
        return f"TensorFlow has no wheels for {' on '.join(here)}"
    if not shutil.which("git"):
        return "git was not found; install it"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        return (
            f"this Python has no module {error.name}; on Debian and Ubuntu: "
            f"apt install python{dotted(version)}-venv"
        )
    return None


def version_of(python: Path) -> "Optional[str]":  # noqa: UP045
    """Return the version of an environment's Python; None if there is none, or it has no pip."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True)
    except OSError:
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def install(folder: Path, lock: Path, *packages: Path) -> int:
    """Install what a lock file lists, and packages of this repository; return an exit code."""
    reason = problem()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    python, stamp = folder / "bin" / "python", folder / f"{lock.name}.installed"
    if version_of(python) != dotted(tuple(sys.version_info[:2])):
        if folder.is_symlink():
            print(f"error: {folder} is a broken link; remove it", file=sys.stderr)
            return 1
        if folder.exists():
            print(f"rebuilding {folder}: it is broken, or of another Python", flush=True)
            shutil.rmtree(folder)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    files = [lock, *(package / "pyproject.toml" for package in packages)]
    contents = b"".join(file.read_bytes() for file in files)
    wanted = hashlib.sha256(contents).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    print(f"installing {lock} into {folder}: this takes minutes", flush=True)
    # The lock file is complete, and pip's resolver trips over pins of packages with extras.
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps"]
    commands = [[*pip, "--require-hashes", "-r", str(lock)]]
    # In place, so that a change takes effect at once; built with what the lock file lists.
    commands += [[*pip, "--no-build-isolation", "-e", str(package)] for package in packages]
    if any(subprocess.run(command).returncode for command in commands):
        print(f"error: {lock} could not be installed; pip says why above", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(install(*map(Path, sys.argv[1:])))
