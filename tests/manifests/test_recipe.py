"""Recipes: bounds with the source of each number."""

from __future__ import annotations

import pytest

from manifests import recipe
from manifests.recipe import RecipeError
from manifests.schema import Clip, columns


def bounds(wanted: recipe.Recipe) -> list[str]:
    return [str(limit.bound) for limit in wanted.limits]


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_says_what_it_is_for_and_where_each_number_is_from(name):
    shipped = recipe.load(name, columns(Clip))
    assert shipped.name == name and shipped.about and shipped.limits
    assert all(limit.source.strip() for limit in shipped.limits)


def test_published_thresholds_are_as_published():
    assert bounds(recipe.load("latentsync")) == ["sync_c>=3", "abs(sync_offset)<=6"]
    assert bounds(recipe.load("mova")) == ["sync_c>=4.5", "sync_d<=9.5"]
    assert bounds(recipe.load("hallo1")) == [
        *["face_ratio>=0.5", "face_ratio<=0.7", "yaw_p95<30", "pitch_p95<30", "roll_p95<30"]
    ]


@pytest.mark.parametrize("name", ["hallo3-stage1", "hallo3-stage2", "embedded"])
def test_where_nothing_is_published_the_numbers_are_ours_and_marked_so(name):
    assert all(limit.source.startswith("ours") for limit in recipe.load(name).limits)


def test_the_embedded_recipe_asks_for_nothing_that_needs_other_weights():
    assert not {"sync_c", "sync_d", "sync_offset"} & set(recipe.load("embedded").columns)


def test_an_unknown_recipe_names_the_nearest_and_lists_them_all():
    with pytest.raises(RecipeError, match=r"did you mean 'latentsync'\? there is embedded, hallo1, .*, mova"):
        recipe.load("latensync")


def test_a_name_cannot_lead_out_of_the_folder():
    with pytest.raises(RecipeError, match="no recipe"):
        recipe.load("../recipes/mova")


def test_a_recipe_of_your_own_is_a_file(tmp_path):
    own = tmp_path / "loud.yaml"
    own.write_text("about: loud\nlimits:\n  - {bound: level>=-20, source: my ears}\n")
    found = recipe.load(str(own))
    assert (found.name, found.about, bounds(found)) == ("loud", "loud", ["level>=-20"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits:\n  - {bound: levle>=1, source: x}", "did you mean 'level'"),
        ("limits:\n  - {bound: level>=1}", "the `source` of its number"),
        ("limits:\n  - {bound: level>=1, source: ''}", "the `source` of its number"),
        ("- {bound: level>=1, source: x}", "has `about`, a text, and `limits`"),
        ("limits: []\nlimit: 3", "unknown entry 'limit'"),
        ("limits: [", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"own\.yaml: .*{said}"):
        recipe.load(str(tmp_path / "own.yaml"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"own\.yaml: no such file"):
        recipe.load(str(tmp_path / "own.yaml"))


def test_the_hash_is_of_the_bounds_and_their_order_alone():
    one = recipe.asked(["sync_c>=3", "level>=-40"])
    other = recipe.parsed(
        "named", {"limits": [{"bound": text, "source": "x"} for text in ("sync_c>=3.0", "level >= -40")]}
    )
    assert one.hash == other.hash
    assert one.hash != recipe.asked(["level>=-40", "sync_c>=3"]).hash
    assert one.hash != recipe.asked(["sync_c>=3", "level>=-41"]).hash


def test_recipes_join_and_what_both_ask_for_counts_once():
    both = recipe.joined([recipe.load("latentsync"), recipe.asked(["sync_c>=3", "level>=-40"]), recipe.load("mova")])
    assert both.name == "latentsync+mova"
    assert bounds(both) == ["sync_c>=3", "abs(sync_offset)<=6", "level>=-40", "sync_c>=4.5", "sync_d<=9.5"]
    assert both.limits[0].source.startswith("LatentSync")


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_reads_back_from_its_document(name):
    shipped = recipe.load(name)
    assert recipe.parsed(name, recipe.document(shipped)) == shipped
