import pytest
from outpost_export.errors import RecipeError
from outpost_export.recipe import read_recipe


def _read(tmp_path, text, **named):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    arguments = {
        "target": "cpu-int8",
        "name": None,
        "default_name": "folder",
        "version": None,
    } | named
    return read_recipe(path, **arguments)


def test_what_is_named_beside_the_file_wins_and_the_folder_names_last(tmp_path):
    assert _read(tmp_path, 'name = "file"', name="argument").name == "argument"
    assert _read(tmp_path, 'name = "file"').name == "file"
    assert _read(tmp_path, "").name == "folder"


def test_a_rank_beside_the_file_wins_even_if_it_is_none(tmp_path):
    assert _read(tmp_path, "adapter_rank = 8").adapter_rank == 8
    assert _read(tmp_path, "adapter_rank = 8", adapter_rank=0).adapter_rank == 0
    assert _read(tmp_path, "").adapter_rank == 0


def test_thresholds_of_the_file_replace_only_those_of_the_same_name(tmp_path):
    recipe = _read(tmp_path, "[thresholds]\ntop1_agreement = 0.9")
    completed = recipe.with_defaults(task="text-generation", licence="mit")
    assert completed.thresholds == {"perplexity_increase": 0.01, "top1_agreement": 0.9}


@pytest.mark.parametrize(
    ("target", "task", "text", "scales"),
    [
        ("cpu-int8", "text-generation", "", "columns"),
        ("cpu-int8", "text-generation", 'scales = "blocks"', "blocks"),
        ("cpu-int8", "feature-extraction", "", "blocks"),
        ("cpu-int4", "text-generation", "", "blocks"),
        ("cpu-fp32", "text-generation", "", None),
    ],
)
def test_what_shares_a_scale_follows_from_task_and_target(tmp_path, target, task, text, scales):
    recipe = _read(tmp_path, text, target=target)
    assert recipe.with_defaults(task=task, licence="mit").scales == scales


@pytest.mark.parametrize("target", ["cpu-int4", "cpu-fp32"])
def test_scales_per_column_are_refused_where_they_cannot_be_built(tmp_path, target):
    recipe = _read(tmp_path, 'scales = "columns"', target=target)
    with pytest.raises(RecipeError, match="Only cpu-int8 models for text-generation"):
        recipe.with_defaults(task="text-generation", licence="mit")


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ("cpu-int4", "text-generation"),
        ("cpu-fp32", "text-generation"),
        ("cpu-int8", "feature-extraction"),
    ],
)
def test_a_screened_head_is_refused_where_none_can_be_built(tmp_path, target, task):
    recipe = _read(tmp_path, 'head = "screened"', target=target)
    with pytest.raises(RecipeError, match="text-generation can have head = 'screened'"):
        recipe.with_defaults(task=task, licence="mit")


def test_equal_recipes_have_equal_digests_and_others_others(tmp_path):
    first, same = _read(tmp_path, "block_size = 32"), _read(tmp_path, "")
    assert first.sha256 == same.sha256 != _read(tmp_path, "block_size = 64").sha256


@pytest.mark.parametrize(
    ("text", "named", "complaint"),
    [
        ("surprise = 1", {}, "unknown keys: surprise"),
        ("name = ", {}, "cannot be read"),
        ("adapter_rank = -1", {}, "must be from 0 to 512"),
        ("adapter_rank = 513", {}, "must be from 0 to 512"),
        ('name = "Not A Name"', {}, "lower-case"),
        ("block_size = 33", {}, "block_size is not one of"),
        ('scales = "rows"', {}, "scales 'rows' are not one of"),
        ('head = "fast"', {}, "head 'fast' is not one of screened"),
        ("context_length = 'long'", {}, "must be an integer"),
        ("[thresholds]\nspeed = 1", {}, "thresholds.speed is not one of"),
        ("", {"target": "toaster"}, "target 'toaster' is not one of"),
        ('task = "telepathy"', {}, "task 'telepathy' is not one of"),
        ("context_length = 3", {}, "at least 64"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_fault(tmp_path, text, named, complaint):
    with pytest.raises(RecipeError, match=complaint):
        _read(tmp_path, text, **named)
