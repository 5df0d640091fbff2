"""Starts one program in a root of its own, as an engine would.

What `Entry.argv` names runs this module as root in fresh namespaces: it mounts what an engine mounts, gives up every
privilege and becomes the program.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

DEVICES: Final = ("null", "zero", "random", "urandom")

# linux/prctl.h, linux/sockios.h, linux/if.h
PR_SET_PDEATHSIG: Final = 1
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1
# More than any kernel has; the first one that it does not know ends the loop.
CAPABILITIES: Final = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """What is run, where, by whom.

    `mounted` are folders of the host that are there read-only: path inside -> path here.
    """

    root: str
    command: list[str]
    environment: dict[str, str]
    folder: str = "/"
    user: int = 0
    group: int = 0
    is_read_only: bool = True
    volumes: list[str] = field(default_factory=list)
    mounted: dict[str, str] = field(default_factory=dict)

    def argv(self, beside: int | None = None) -> list[str]:
        """The command that does it, in a network of its own or in that of the process `beside`, as in one pod."""
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        own = [*unshare, "--net"] if beside is None else ["nsenter", f"--net=/proc/{beside}/ns/net", "--", *unshare]
        return [*own, "--", sys.executable, "-m", __name__, json.dumps(asdict(self))]


def main() -> None:
    """Mount, raise the loopback interface, give up all privileges, and become the program."""
    entry = Entry(**json.loads(sys.argv[1]))
    _mount_all(entry)
    _raise_loopback()
    if entry.user:
        _drop_capabilities()
    os.chroot(entry.root)
    os.chdir(entry.folder)
    os.setgroups([])
    os.setgid(entry.group)
    os.setuid(entry.user)
    _die_with_parent()
    os.execvpe(entry.command[0], entry.command, entry.environment)


def _mount_all(entry: Entry) -> None:
    root = Path(entry.root)
    _mount("--bind", root, root)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", root / "dev")
    for device in DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", Path("/dev") / device, root / "dev" / device)
    for volume in entry.volumes:
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / volume.lstrip("/"))
    for inside, outside in entry.mounted.items():
        (root / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
        _mount("--bind", "-o", "ro", outside, root / inside.lstrip("/"))
    if entry.is_read_only:
        _mount("-o", "remount,bind,ro", root)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _drop_capabilities() -> None:
    """None can be had any more, by no program; those in force go when the user changes."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(CAPABILITIES):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def _die_with_parent() -> None:
    """As unshare had asked for; the kernel forgets it when the user changes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
