"""One box in qemu: UEFI with Secure Boot, a TPM or none, a disk, a serial cable, four ports.

A machine is a folder (disk, TPM, firmware variables), so a copy of the folder is a copy of the box.
Killing is done by process id, and loses nothing that the guest had flushed.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.metal.tools import OUT, TOOLS, inside

_FIRMWARE = "/usr/share/OVMF"
_NATIVE = ["-accel", "kvm", "-cpu", "host", "-smp", "2"]
_EMULATED = ["-accel", "tcg,tb-size=1024", "-cpu", "EPYC", "-smp", "1"]
"""One processor: with two, the second one's timer stopped for good in a start of this image.

And one that Linux needs not isolate page tables on: an emulator loses what it knows of them with
every system call, and a start takes half as long again.
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;:?=]*[A-Za-z]|\x1bc|\r")
_REPORT = re.compile(r"outpost-report ([^:]+): ?(.*)")
_DISK_BYTES = 6 << 30


class NotSeenError(AssertionError):
    """The box did not do in time what a test waits for."""


@dataclass(kw_only=True)
class Machine:
    """A box; a context manager that switches it off.

    Attributes:
        folder: Of its disk, TPM and firmware variables.
        sticks: Images of sticks that are plugged in when it starts.
        clock: What the hardware clock says, for qemu's ``-rtc base=``.
        has_tpm: Whether it has a TPM.
        options: More of qemu's.
    """

    folder: Path
    sticks: tuple[Path, ...] = ()
    clock: str = "utc"
    has_tpm: bool = True
    options: tuple[str, ...] = ()
    grpc: int = field(default_factory=lambda: free_port())  # noqa: PLW0108 - it stands below
    http: int = field(default_factory=lambda: free_port())  # noqa: PLW0108 - it stands below
    tls: int = field(default_factory=lambda: free_port())  # noqa: PLW0108 - it stands below
    https: int = field(default_factory=lambda: free_port())  # noqa: PLW0108 - it stands below
    began: float = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Switch it on."""
        for name in ("serial.log", "qemu.pid", "tpm.sock", "monitor.sock"):
            (self.folder / name).unlink(missing_ok=True)
        if self.has_tpm:
            self._start_tpm()
        with (self.folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                inside(self.folder, "qemu-system-x86_64", *self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # whoever types in this terminal does not stop a box
            )
        self.began = time.monotonic()

    def kill(self) -> None:
        """Pull the plug."""
        pid = self.folder / "qemu.pid"
        if pid.exists() and self._qemu.poll() is None:
            os.kill(int(pid.read_text()), signal.SIGKILL)
        else:
            self._qemu.kill()
        self._qemu.wait(30)
        if self.has_tpm:
            self._tpm.terminate()
            self._tpm.wait(30)

    def power_button(self) -> None:
        """Ask it to shut down, and wait until it has."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "monitor.sock"))
            for command in ("qmp_capabilities", "system_powerdown"):
                monitor.sendall(json.dumps({"execute": command}).encode())
                time.sleep(0.2)
        self._qemu.wait(180)

    def console(self) -> str:
        """Return what came over the serial cable."""
        log = self.folder / "serial.log"
        text = log.read_bytes().decode("utf-8", "replace") if log.exists() else ""
        return _ESCAPES.sub("", text)

    def wait(self, seen: str | Callable[[], object], seconds: float = 900) -> float:
        """Wait for a pattern on the console, or for something to be true; returns when it was.

        Raises:
            NotSeenError: It was not in time, or the machine ended.
        """
        pattern = re.compile(seen) if isinstance(seen, str) else None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if pattern.search(self.console()) if pattern else seen():  # type: ignore[operator]  # one of two
                return time.monotonic() - self.began
            if self._qemu.poll() is not None:
                break
            time.sleep(0.5)
        log = (self.folder / "qemu.log").read_text("utf-8", "replace")
        raise NotSeenError(f"{seen} was not seen:\n{log[-2000:]}\n{self.console()[-6000:]}")

    def report(self, seconds: float = 900) -> dict[str, list[str]]:
        """Wait for the last report of the box on its console, and read it."""
        self.wait("outpost-report end", seconds)
        last = self.console().rsplit("outpost-report version", 1)[1]
        found: dict[str, list[str]] = {}
        for key, value in _REPORT.findall("outpost-report version" + last):
            found.setdefault(key, []).append(value.strip())
        return found

    def copy(self, folder: Path) -> "Machine":
        """Return a box that is like this one, which is switched off."""
        no_sockets = shutil.ignore_patterns("*.sock")  # which a plug that was pulled leaves behind
        shutil.copytree(self.folder, folder, copy_function=copy_sparse, ignore=no_sockets)
        return Machine(folder=folder)

    def _start_tpm(self) -> None:
        (self.folder / "tpm").mkdir(exist_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", "dir=tpm"]
        command += ["--ctrl", "type=unixio,path=tpm.sock"]
        self._tpm = subprocess.Popen(
            inside(self.folder, *command), stdin=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + 10
        while not (self.folder / "tpm.sock").exists() and time.monotonic() < until:
            time.sleep(0.05)

    def _arguments(self) -> list[str]:
        doors = ((self.grpc, 8001), (self.http, 8000), (self.tls, 8444), (self.https, 8443))
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in doors)
        code = f"{_FIRMWARE}/OVMF_CODE_4M.secboot.fd"
        words = [
            "-nodefaults -display none -m 2048 -machine q35,smm=on",
            "-global driver=cfi.pflash01,property=secure,value=on",
            f"-drive if=pflash,format=raw,unit=0,readonly=on,file={code}",
            "-drive if=pflash,format=raw,unit=1,file=vars.fd",
            "-drive if=none,id=disk,format=raw,file=disk.raw,discard=unmap",
            "-device virtio-blk-pci,drive=disk,bootindex=1",
            f"-netdev user,id=net,{forwards} -device virtio-net-pci,netdev=net",
            "-device virtio-rng-pci -device qemu-xhci -uuid 5f0c3a52-0b8e-4a53-9a3c-3f7e4d1d2f61",
            "-device i6300esb -action watchdog=reset",
            f"-serial file:serial.log -pidfile qemu.pid -rtc base={self.clock}",
            "-qmp unix:monitor.sock,server=on,wait=off",
        ]
        if self.has_tpm:
            words.append("-chardev socket,id=tpm,path=tpm.sock -tpmdev emulator,id=tpm,chardev=tpm")
            words.append("-device tpm-crb,tpmdev=tpm")
        for number, stick in enumerate(self.sticks):
            words.append(f"-drive if=none,id=stick{number},format=raw,file={stick.name}")
            words.append(f"-device usb-storage,drive=stick{number},removable=on")
        return [*" ".join(words).split(), *accelerator(), *self.options]


def new_machine(folder: Path, disk_bytes: int = _DISK_BYTES) -> Machine:
    """Return a box whose disk holds an image and nothing else, as the factory makes it."""
    folder.mkdir(parents=True)
    copy_sparse(OUT / "x86-generic" / "outpost_1.raw", folder / "disk.raw")
    os.truncate(folder / "disk.raw", disk_bytes)
    shutil.copy(TOOLS / _FIRMWARE[1:] / "OVMF_VARS_4M.fd", folder / "vars.fd")
    return Machine(folder=folder)


def accelerator() -> list[str]:
    """Return qemu's options: KVM where this firmware starts under it, emulation otherwise."""
    chosen = OUT.parent / "accelerator"
    if not chosen.exists():
        chosen.write_text("kvm" if _kvm_starts(OUT.parent) else "tcg")
    return _NATIVE if chosen.read_text() == "kvm" else _EMULATED


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _kvm_starts(folder: Path) -> bool:
    # /dev/kvm may be there and yet not run UEFI: nested hypervisors lack instructions, or SMM.
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    code = f"if=pflash,format=raw,readonly=on,file={_FIRMWARE}/OVMF_CODE_4M.secboot.fd"
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,smm=on"]
    command += [*_NATIVE, "-drive", code, "-serial", "stdio"]
    try:
        done = subprocess.run(
            inside(folder, *command), capture_output=True, timeout=30, check=False
        )
        shown = done.stdout
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
    return b"BdsDxe" in shown


def copy_sparse(source: str | Path, target: str | Path) -> None:
    """Copy a file and its holes."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
