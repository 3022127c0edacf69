"""A system in the other slot of a switched-off box, by the real systemd-sysupdate."""

import shutil

from tests.support.metal.machine import Machine, copy_sparse
from tests.support.metal.tools import OUT, ROOT, run

_DEFINITIONS = ROOT / "device-images/mkosi.extra/usr/lib/sysupdate.d"
_SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"
_BOOT = f"disk.raw@@{1 << 20}"
"""The boot partition, in words of mtools."""


def install(box: Machine, version: int) -> None:
    """Put a version that was built into the slot that the box does not run from.

    The image's own definitions are used; only their paths lead to this machine's files.
    """
    folder = box.folder
    for name in ("definitions", "source", "kernels"):
        (folder / name).mkdir()
    for path in _DEFINITIONS.glob("*.transfer"):
        text = path.read_text("utf-8")
        for old, new in (
            ("Path=/var/lib/outpost/store/system", "Path=/mnt/source"),
            ("Path=auto", "Path=/mnt/disk.raw"),
            ("Path=/EFI/Linux\nPathRelativeTo=boot", "Path=/mnt/kernels"),
            ("%M", "outpost"),
            ("%A", "1"),
        ):
            text = text.replace(old, new)
        (folder / "definitions" / path.name).write_text(text)
    for kind in ("efi", "system.*.raw", "verity.*.raw"):
        for path in (OUT / "x86-generic").glob(f"outpost_{version}.{kind}"):
            copy_sparse(path, folder / "source" / path.name)
    run(folder, "mcopy", "-s", "-i", _BOOT, "::EFI/Linux/*", "kernels/")
    run(folder, _SYSUPDATE, "--definitions=/mnt/definitions", "update", version)
    (installed,) = (folder / "kernels").glob(f"outpost_{version}*")
    run(folder, "mcopy", "-i", _BOOT, f"kernels/{installed.name}", "::EFI/Linux/")
    for name in ("definitions", "source", "kernels"):
        shutil.rmtree(folder / name)
