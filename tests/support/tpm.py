"""A TPM 2.0 in software (swtpm), with its state in a folder: stop and start it for a reboot."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_PATIENCE = 10.0


def missing() -> str | None:
    """Say why there can be no TPM here, or None."""
    if shutil.which("swtpm") is None:
        return "swtpm is not installed: apt install swtpm"
    return None


@contextmanager
def running_tpm(state: Path) -> Iterator[str]:
    """Run a TPM; gives its TCTI in tpm2-tss's words."""
    state.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="tpm") as folder:  # a socket's path has to be short
        socket = Path(folder) / "s"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
        command += ["--server", f"type=unixio,path={socket}"]
        command += ["--ctrl", f"type=unixio,path={socket}.ctrl"]
        command += ["--flags", "not-need-init,startup-clear"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(Path(f"{socket}.ctrl"), process)
            yield f"swtpm:path={socket}"
        finally:
            process.kill()
            process.wait()


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError("swtpm did not start")
        time.sleep(0.01)
