"""Run the tests under every supported Python of this machine: `nox`, or `nox -s tests-3.12`.

`nox -s quixote` runs those of the Quixote integration with each Quixote that it supports.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]

# pyenv puts stand-ins in the PATH that run only the versions chosen for a folder; take all it has.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
for version in PYTHONS:
    for found in sorted(pyenv.glob(f"{version}.*/bin")):
        os.environ["PATH"] = f"{found}{os.pathsep}{os.environ['PATH']}"


def runs(version: str) -> bool:
    """Whether `python<version>` is there and more than a stand-in."""
    command = shutil.which(f"python{version}")
    return (
        command is not None and not subprocess.run([command, "-V"], capture_output=True).returncode
    )


@nox.session(python=[version for version in PYTHONS if runs(version)])
def tests(session: nox.Session) -> None:
    session.install("--require-hashes", "-r", "requirements/dev.txt")
    session.install("--no-build-isolation", "--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("version", ["3.6", "3.7", "3.8"])
def quixote(session: nox.Session, version: str) -> None:
    """Run the tests of the Quixote integration with each Quixote that it supports."""
    session.install("--require-hashes", "-r", "requirements/dev.txt")
    session.install("--no-deps", f"quixote=={version}")
    session.install("--no-build-isolation", "--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", "tests/web/quixote", *session.posargs)
