"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, with a password, that can be stopped and started.

From Debian's package (`postgresql`); installed if this is Debian, root, and there is a network. PostgreSQL refuses to run as
root, so that as root it runs as the user `postgres`.
"""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

PASSWORD = "s3cret-of-the-tests"


def binaries() -> Path | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if found:
        return Path(found[-1]).parent
    at = shutil.which("initdb")
    return Path(at).resolve().parent if at else None


def install() -> str | None:
    """Installs PostgreSQL if it is not there; returns why that is impossible."""
    if binaries():
        return None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "PostgreSQL is not installed (Debian package: postgresql)"
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    }
    subprocess.run(["apt-get", "update", "-q"], **quiet)
    subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "postgresql"], **quiet)
    return None if binaries() else "PostgreSQL could not be installed (apt-get install postgresql)"


class Postgres:
    """A server on a free port of this machine."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cl_softcot_pg_"))
        self.port = _free_port()
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self.folder, "postgres")
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = self.folder / "data"
        options = ["-A", "scram-sha-256", "-U", "sweeper", f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C"]
        self._run("initdb", "-D", str(data), *options)
        secret.unlink()
        with open(data / "postgresql.conf", "a") as file:
            file.write(
                f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nfsync=off\nmax_connections=60\n"
            )
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(binaries() / name), *arguments], capture_output=True, text=True, timeout=180, cwd="/"
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-t", "120", "start")

    def stop(self, how: str = "immediate") -> None:
        """`immediate` is a crash: every connection is cut, and the next start recovers."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "-t", "120", "stop")

    def restart(self, meanwhile: Callable[[], object]) -> None:
        """Away until that is done."""
        self.stop()
        try:
            meanwhile()
        finally:
            self.start()

    @property
    def url(self) -> str:
        """Without the password, as a sweep file may hold it."""
        return f"postgresql://sweeper@127.0.0.1:{self.port}/postgres"

    @property
    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": PASSWORD}

    def close(self) -> None:
        try:
            self.stop("immediate")
        except (RuntimeError, subprocess.TimeoutExpired):
            pass
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
