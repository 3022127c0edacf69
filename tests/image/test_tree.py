"""The folders of the device image, without building it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
TREE = ROOT / "device-images"
EXTRA = TREE / "mkosi.extra"
FOLDERS = [EXTRA, *TREE.glob("mkosi.profiles/*/mkosi.extra")]
UNITS = [
    path
    for folder in FOLDERS
    for path in sorted((folder / "usr/lib/systemd/system").glob("*.*"))
    if path.is_file()
]

# What may lie where; anything else was left there by mistake.
KINDS = [
    r"(build|lock|sbom\.jq|mkosi\.conf|tools\.list|wheels\.without|\w+\.lock)",
    r"mkosi\.(images|profiles)/[\w-]+/mkosi\.conf",
    r"mkosi\.repart/\d\d-[\w-]+\.conf",
    r"(mkosi\.images/initrd/|mkosi\.profiles/[\w-]+/)?mkosi\.extra/.*",
]
EXTRAS = [
    r"etc/(fstab|outpost)",
    r"etc/systemd/system(-generators)?/[\w@.-]+",
    r"usr/bin/outpost",
    r"usr/sbin/init",
    r"usr/lib/outpost/[\w-]+(\.nft)?",
    r"usr/lib/outpost/disk/(tpm|weak-key)/\d\d-[\w-]+\.conf",
    r"usr/lib/(sysctl|sysusers|tmpfiles)\.d/outpost[\w-]*\.conf",
    r"usr/lib/sysupdate\.d/\d\d-\w+\.transfer",
    r"usr/lib/systemd/(journald|system|sleep|logind|timesyncd)\.conf\.d/outpost[\w-]*\.conf",
    r"usr/lib/systemd/network/\d\d-outpost[\w-]*\.(network|link)",
    r"usr/lib/systemd/system-preset/\d\d-outpost[\w-]*\.preset",
    r"usr/lib/systemd/system/[\w@.-]+\.(service|slice|target|mount|path|timer|socket)",
    r"usr/lib/systemd/system/[\w@.-]+\.d/outpost[\w-]*\.conf",
    r"usr/lib/udev/rules\.d/\d\d-outpost-\w+\.rules",
    r"usr/share/outpost/defaults/[\w.-]+",
]


_UNBUILT = "# CONFIGURATION ONLY"
"""In the first lines of profiles that cannot be built here; docs/hardware.md says why."""


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _sections(path):
    """Read a unit-like file; a key may come several times."""
    found, section = {}, None
    for line in path.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
        elif section and (pair := re.fullmatch(r"(\w+)=(.*)", line)):
            found.setdefault((section, pair[1]), []).append(pair[2])
    return found


def test_every_file_is_of_a_known_kind():
    strangers = []
    for path in _files(TREE):
        name = path.relative_to(TREE).as_posix()
        inner = name.split("mkosi.extra/", 1)[-1] if "mkosi.extra/" in name else None
        known = any(re.fullmatch(kind, name) for kind in KINDS)
        if inner is not None:
            known = known and any(re.fullmatch(kind, inner) for kind in EXTRAS)
        if not known:
            strangers.append(name)
    assert strangers == []


def test_there_is_no_python_in_the_tree():
    assert [path for path in _files(TREE) if path.suffix == ".py"] == []
    for path in _files(TREE):
        if not path.is_symlink():
            assert "python" not in path.read_text("utf-8").splitlines()[0], path


def test_every_script_is_executable_and_can_be_read_by_its_shell():
    scripts = [
        path
        for path in _files(TREE)
        if not path.is_symlink() and path.read_text("utf-8").startswith("#!")
    ]
    assert len(scripts) > 6
    for path in scripts:
        shell = path.read_text("utf-8").splitlines()[0].removeprefix("#!")
        assert shell in ("/bin/sh", "/bin/bash"), path
        assert path.stat().st_mode & 0o111, f"{path} is not executable"
        subprocess.run([shell, "-n", path], check=True)


def test_what_a_unit_runs_is_in_the_tree():
    for path in UNITS:
        for (_, key), values in _sections(path).items():
            for value in values if key.startswith("Exec") else []:
                program = value.lstrip("-@+!:").split(" ")[0]
                if program.startswith("/usr/lib/outpost/"):
                    assert (EXTRA / program.lstrip("/")).is_file(), f"{path.name}: {program}"


def test_nothing_that_takes_long_needs_the_boot_partition_to_stay_mounted():
    """systemd unmounts it after two idle minutes, and stops whatever requires its mount."""
    needing = [
        path.name
        for path in UNITS
        for value in _sections(path).get(("Unit", "RequiresMountsFor"), [])
        if "/boot" in value.split()
    ]
    assert needing == ["outpost-disk-weak-key.service"]  # it is done before the disk is unlocked


def test_every_file_system_grows_and_no_mapping_is_resized():
    """A mapping is made after its partition has grown; growfs would ask for a key to resize it."""
    fstab = (EXTRA / "etc/fstab").read_text("utf-8")
    assert "growfs" not in fstab
    mounted = re.findall(r"^(/dev/mapper/\S+)", fstab, re.MULTILINE)
    grow = _sections(EXTRA / "usr/lib/systemd/system/outpost-grow.service")
    assert grow["Service", "ExecStart"] == [f"resize2fs {device}" for device in mounted]


def test_users_whose_files_outlive_a_system_have_numbers_of_their_own():
    numbers = [
        line.split()[2]
        for folder in FOLDERS
        for path in (folder / "usr/lib/sysusers.d").glob("*.conf")
        for line in path.read_text("utf-8").splitlines()
        if line[0] != "#"
    ]
    assert len(numbers) == len(set(numbers)) > 2
    assert all(400 <= int(number) < 500 for number in numbers)  # Debian: 999 and less


def test_there_is_no_network_without_a_firewall():
    folder = EXTRA / "usr/lib/systemd/system/systemd-networkd.service.d"
    unit = _sections(folder / "outpost.conf")
    assert unit["Unit", "Requires"] == unit["Unit", "After"] == ["outpost-firewall.service"]


def test_a_key_is_the_tpm_s_only_behind_secure_boot_and_exactly_one_kind_is_made():
    folder = EXTRA / "usr/lib/systemd/system"
    key = "Unit", "ConditionSecurity"
    tpm = _sections(folder / "outpost-disk.service")[key]
    weak = _sections(folder / "outpost-disk-weak-key.service")[key]
    assert tpm == ["measured-uki", "uefi-secureboot"]
    assert weak == [f"|!{condition}" for condition in tpm]


def test_every_unit_that_can_be_enabled_is():
    enabled = "".join(
        path.read_text("utf-8")
        for folder in FOLDERS
        for path in (folder / "usr/lib/systemd/system-preset").glob("*.preset")
    )
    for path in UNITS:
        if any(section == "Install" for section, _ in _sections(path)):
            assert f"enable {path.name}\n" in enabled


@pytest.fixture(scope="module")
def analyze():
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on this machine")
    return program


def test_systemd_understands_every_unit(analyze):
    command = [analyze, "verify", "--man=no", "--recursive-errors=no", *UNITS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Programs of the image are not on this machine, and some settings are younger than it.
    younger = r"'(RestartSteps|RestartMaxDelaySec)'"
    told = [
        line
        for line in done.stderr.splitlines()
        if "device-images" in line or line.startswith("outpost")
        if "is not executable" not in line
        if not re.search(younger, line)
    ]
    assert told == []


@pytest.mark.parametrize("name", ["outpost", "outpost-setup", "outpost-mirror"])
def test_what_the_network_reaches_is_exposed_by_at_most_two(analyze, name):
    service = next(path for path in UNITS if path.name == f"{name}.service")
    command = [analyze, "security", "--offline=true", "--no-pager", "--threshold=20"]
    done = subprocess.run([*command, service], capture_output=True, text=True, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout[-300:]


def test_both_kinds_of_keys_make_the_same_partitions():
    for path in sorted((EXTRA / "usr/lib/outpost/disk/tpm").iterdir()):
        tpm, weak = _sections(path), _sections(path.parents[1] / "weak-key" / path.name)
        encrypt, label = ("Partition", "Encrypt"), ("Partition", "Label")
        if encrypt in tpm:
            assert (tpm.pop(encrypt), weak.pop(encrypt)) == (["tpm2"], ["key-file"])
            assert weak.pop(label) == [f"{tpm.pop(label)[0]}-weak-key"]
        assert tpm == weak


def test_a_box_has_two_slots_of_the_size_that_is_built():
    for kind, name in (("system", "system-?"), ("system-verity", "system-?-verity")):
        built = _sections(next((TREE / "mkosi.repart").glob(f"2?-{kind}.conf")))
        folder = EXTRA / "usr/lib/outpost/disk/tpm"
        slots = [_sections(path) for path in folder.glob(f"??-{name}.conf")]
        assert len(slots) == 2
        for key in ("Type", "SizeMinBytes", "SizeMaxBytes"):
            assert [slot["Partition", key] for slot in slots] == [built["Partition", key]] * 2


def _locked(name):
    lines = [line for line in (TREE / name).read_text("utf-8").splitlines() if line[0] != "#"]
    return [re.fullmatch(r"([0-9a-f]{64}) (\d+) ([\w./%+~-]+\.deb)", line) for line in lines]


@pytest.mark.parametrize("name", ["packages.lock", "tools.lock"])
def test_every_package_is_locked_by_its_digest(name):
    entries = _locked(name)
    assert len(entries) > 100
    assert None not in entries
    files = [entry[3].rsplit("/", 1)[1].split("_")[0] for entry in entries]
    assert len(files) == len(set(files)), "two versions of one package"


def _names(lock):
    return {unquote(entry[3].rsplit("/", 1)[1].split("_")[0]) for entry in _locked(lock)}


# Virtual names that Debian's packages of another name provide.
_PROVIDED = {"libtss2-tcti-device0": "libtss2-tcti-device0t64", "libtss2-rc0t64": None}


def test_every_tool_is_locked():
    locked = _names("tools.lock")
    wanted = (TREE / "tools.list").read_text("utf-8").splitlines()[1:]
    assert "libfaketime" in wanted  # signatures say when they were made
    missing = [name for name in wanted if not {name, _PROVIDED.get(name)} & locked]
    assert missing == []


def test_every_package_of_the_images_is_locked():
    locked = _names("packages.lock")
    built = [path for path in TREE.rglob("mkosi.conf") if _UNBUILT not in path.read_text("utf-8")]
    assert len(built) > 4
    for path in built:
        block = re.search(r"^Packages=\n((?: +.+\n)+)", path.read_text("utf-8"), re.MULTILINE)
        wanted = set(block[1].split()) if block else set()
        for package in wanted:
            assert package in locked or _PROVIDED.get(package) in locked, f"{path}: {package}"


def test_the_wheels_are_those_that_were_tested():
    tested = {
        name.lower().replace("_", "-"): version
        for name, version in re.findall(
            r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE
        )
    }
    text = (TREE / "wheels.lock").read_text("utf-8")
    locked = re.findall(r"^([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert len(locked) == len(text.splitlines()) - 1
    for name, version in locked:
        assert tested[name.lower().replace("_", "-")] == version


def test_nothing_that_trains_compiles_or_installs_is_in_the_image():
    names = {
        line.split("==")[0].lower() for line in (TREE / "wheels.lock").read_text().splitlines()
    }
    assert (
        names & {"torch", "transformers", "onnx", "pip", "setuptools", "huggingface_hub"} == set()
    )
    packages = {entry[3].rsplit("/", 1)[1].split("_")[0] for entry in _locked("packages.lock")}
    assert packages & {"gcc", "python3-pip", "python3-torch", "openssh-server", "make"} == set()


def test_every_need_of_the_runtime_has_a_wheel():
    names = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (TREE / "wheels.lock").read_text().splitlines()
    }
    for folder in ("proto", "runtime"):
        with (ROOT / folder / "pyproject.toml").open("rb") as file:
            for need in tomllib.load(file)["project"]["dependencies"]:
                name = re.match(r"[\w.-]+", need)[0].lower().replace("_", "-")
                assert name in names or name.startswith("outpost"), name


def test_what_was_never_built_is_said_to_be_so():
    unbuilt = [p.parent.name for p in TREE.rglob("mkosi.conf") if _UNBUILT in p.read_text("utf-8")]
    assert sorted(unbuilt) == ["arm64-jetson", "x86-nvidia"]
    said = (ROOT / "docs/hardware.md").read_text("utf-8")
    assert all(f"`{name}`" in said for name in unbuilt)
    for name in unbuilt:
        done = subprocess.run(
            [TREE / "build", "--profile", name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, "configuration only" in done.stderr) == (2, True)
