"""A device image's system becomes a bundle that can be published."""

import argparse

import pytest
from outpost_export.errors import PublishError
from outpost_export.publishing.system_bundle import pack_system
from outpost_export.publishing.system_cli import add_commands
from outpost_runtime.bundle import read_bundle, verify
from outpost_runtime.errors import UnsupportedError
from outpost_runtime.opening import open_model

from tests.support.systems import built, packed


def test_a_system_is_a_bundle_of_the_files_that_sysupdate_looks_for(tmp_path):
    bundle = read_bundle(pack_system(built(tmp_path / "built", 2), tmp_path / "bundle").folder)
    verify(bundle)
    manifest = bundle.manifest
    assert manifest == packed(tmp_path, 2).manifest  # what the device's tests are made of
    assert (manifest.name, manifest.version, manifest.target) == ("system", "2", "system-outpost")
    assert sorted(name.split(".")[1] for name in manifest.files) == [
        "cdx", "efi", "system", "verity",
    ]  # fmt: skip


def test_the_whole_disk_is_not_shipped(tmp_path):
    kernel = built(tmp_path / "built", 2)
    (kernel.parent / "outpost_2.raw").write_bytes(b"ESP and all")
    assert "outpost_2.raw" not in pack_system(kernel, tmp_path / "bundle").manifest.files


def test_a_build_that_is_not_whole_is_refused(tmp_path):
    kernel = built(tmp_path / "built", 2)
    next(kernel.parent.glob("*.verity.*")).unlink()
    with pytest.raises(PublishError, match="0 files"):
        pack_system(kernel, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_two_builds_of_one_version_are_not_mixed(tmp_path):
    kernel = built(tmp_path / "built", 2)
    (kernel.parent / "outpost_2.system.another.raw").write_bytes(b"older")
    with pytest.raises(PublishError, match="2 files"):
        pack_system(kernel, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["outpost.efi", "outpost_0.efi", "outpost_2b.efi", "vmlinuz"])
def test_what_has_no_number_is_no_system(tmp_path, name):
    with pytest.raises(PublishError, match="no kernel image"):
        pack_system(tmp_path / name, tmp_path / "bundle")


def test_no_server_opens_a_system(tmp_path):
    with pytest.raises(UnsupportedError):
        open_model(packed(tmp_path, 2))


def test_the_command_says_for_whom_it_is(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    words = ["pack-system", str(built(tmp_path / "built", 7)), str(tmp_path / "bundle")]
    parsed = parser.parse_args(words)
    assert parsed.run(parsed) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "system 7 for boxes that take system-outpost" in said
