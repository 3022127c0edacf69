"""The command that tells a box whom to trust and where to ask, once or again."""

import pytest
from outpost_runtime.cli.main import main
from outpost_runtime.update.device import read_device

from tests.support.publisher import Publisher


@pytest.fixture
def provision(tmp_path):
    (tmp_path / "root.json").write_bytes(Publisher().root_bytes)

    def provision(*options):
        places = ["--root", str(tmp_path / "root.json"), "--store", str(tmp_path / "store")]
        return main(["provision", *places, *options])

    return provision


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ftp://x", "must begin with https:// or http://"),
        ("http://[", "must begin with https:// or http://"),
        ("", "has an address or a folder"),
    ],
)
def test_a_source_of_no_use_is_refused_before_a_box_is_made(
    provision, tmp_path, capsys, source, said
):
    assert provision("--repo", source) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_who_provisions_again_is_shown_what_that_replaced(provision, tmp_path, capsys):
    first = ["--repo", "http://a.example", "--model", "press-terminal", "--ring", "lab"]
    assert provision(*first) == 0
    assert provision(*first) == 0
    assert " now." not in capsys.readouterr().out
    assert provision("--repo", "http://b.example") == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "--model was press-terminal and is generic now.",
        "--ring was lab and is not said now.",
        "--repo was http://a.example and is http://b.example now.",
    ]
    assert read_device(tmp_path / "store").model == "generic"


def test_a_damaged_file_of_a_box_is_mended_by_provisioning(provision, tmp_path):
    assert provision("--repo", "http://a.example") == 0
    (tmp_path / "store" / "device.json").write_text("{")
    assert provision("--repo", "http://a.example") == 0
    assert read_device(tmp_path / "store").sources == ("http://a.example",)
