"""Debian's packages for other processors, through an apt of its own: the system's packages stay as they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

RELEASE = "bookworm"
SETTINGS = """
Dir "{folder}";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc "{folder}/etc";
Dir::Etc::sourcelist "/etc/apt/sources.list";
Dir::Etc::sourceparts "/etc/apt/sources.list.d";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
Dir::Log "{folder}";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
"""


class Unavailable(Exception):
    """Something that Arm is emulated with cannot be had here; says what."""


def unpack(packages: Sequence[str], architecture: str, root: Path) -> None:
    """Unpack packages and all that they need into a folder, from where this system has its own; no script runs.

    Raises Unavailable where there is no apt, another release, or no way to Debian's servers.
    """
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing or f"VERSION_CODENAME={RELEASE}" not in Path("/etc/os-release").read_text(encoding="utf-8"):
        needed = missing[0] if missing else f"Debian's release {RELEASE}"
        raise Unavailable(f"Arm is emulated with Debian's packages, and {needed} is missing here")
    folder = root.with_name(f"{root.name}.apt")
    for name in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(SETTINGS.format(folder=folder, architecture=architecture))
    _apt(settings, "update", "--error-on=any")
    _apt(settings, "install", "--yes", "--download-only", *packages)
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    shutil.rmtree(folder)


def _apt(settings: Path, *arguments: str) -> None:
    command = ["apt-get", "--quiet", *arguments]
    ran = subprocess.run(command, env={"APT_CONFIG": str(settings), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                         capture_output=True, text=True, check=False)  # fmt: skip
    if ran.returncode:
        reason = (ran.stderr.strip() or "no reason given").splitlines()[-1]
        raise Unavailable(f"Debian's packages for Arm cannot be had here: {' '.join(command[:3])}: {reason}")
