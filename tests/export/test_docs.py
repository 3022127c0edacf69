"""What is written is true: the module list, the make targets, the commands."""

import re
import shlex
from pathlib import Path

import pytest
from outpost_export import cli as export_cli
from outpost_runtime.cli import main as runtime_cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def _modules(folder, package):
    for path in (ROOT / folder / package).rglob("*.py"):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        if parts[-1] == "__init__" and "sessions" in parts:
            yield ".".join(parts[:-1])
        elif not parts[-1].startswith("__"):
            yield ".".join(parts)


def test_the_architecture_lists_every_module_and_no_other():
    listed = set(re.findall(r"\* `(outpost_\w+(?:\.\w+)+)`:", ARCHITECTURE))
    present = {*_modules("runtime", "outpost_runtime"), *_modules("export", "outpost_export")}
    assert listed == present


def test_every_link_in_the_documents_leads_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_every_make_target_of_the_readme_exists(command):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("outpost")])
def test_every_command_of_the_readme_is_understood(command):
    name, *arguments = shlex.split(command.removesuffix("&"))
    parser = {"outpost": runtime_cli, "outpost-export": export_cli}[name]._parser()
    parser.parse_args(arguments)


def test_the_readme_shows_commands():
    assert len(COMMANDS) > 6
