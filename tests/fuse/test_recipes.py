"""Recipes refuse what cannot work, by name."""

from __future__ import annotations

import json

import pytest

from hada.extract.common.errors import UsageError
from hada.fuse.recipes import DEFAULT_RECIPE, FLAT, HINTS, RECIPES, Recipe, recipe
from hada.fuse.settings import LossSettings
from hada.fuse.training.losses import PAIR_LOSSES


def test_recipes_survive_json():
    for made in RECIPES.values():
        assert Recipe.from_json(made.to_json()) == made
    assert DEFAULT_RECIPE in RECIPES


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epoch": "3"}, "unknown recipe setting 'epoch'. Did you mean 'epochs'"),
        ({"epochs": "-1"}, "epochs: expected at least 0, got -1"),
        ({"epochs": "many"}, "epochs: expected int, got 'many'"),
        ({"learning_rate": "nan"}, "learning_rate: expected at least 0"),
        ({"dropout_head": "1"}, "at most 0.99"),
        ({"norm": "group"}, "norm 'group'"),
        ({"graph_hidden": "0"}, "graph_hidden: expected at least 1"),
        ({"graph_hidden": "8.5"}, "graph_hidden: expected whole numbers"),
        ({"convolution": "gatv1"}, "Did you mean 'gatv2'"),
        ({"decay_all": "maybe"}, "decay_all: expected true or false"),
        ({"distill": "0.4"}, "needs slow encoders"),
        ({"learn_scores": "true"}, "the loss must see the scores"),
        ({"weight_nce": "0"}, "all loss weights are 0"),
        ({"score_weights": "1,a"}, "score_weights: expected numbers"),
    ],
)
def test_bad_settings_are_named(settings, says):
    with pytest.raises(UsageError, match=says):
        RECIPES["fast"].with_settings(settings)


def test_settings_take_the_type_of_the_field():
    changed = RECIPES["fast"].with_settings(
        {"epochs": "3", "learning_rate": "1e-4", "decay_all": "true", "score_weights": "1,0.5,2"}
    )
    training = changed.training
    assert (training.epochs, training.learning_rate, training.decay_all) == (3, 1e-4, True)
    assert changed.scores.weights == (1.0, 0.5, 2.0)


def test_unknown_recipe():
    with pytest.raises(UsageError, match="Did you mean 'hada'"):
        recipe("hda")


def test_a_setting_has_two_names_and_one_place():
    assert len(FLAT) == len(HINTS), "two settings share a flat name"
    for flat, dotted, value in (
        ("queue", "loss.queue", "5"),
        ("edge_own", "network.edges.own", "0.5"),
        ("scores", "scores.mode", "first"),
        ("undirected", "network.edges.undirected", "true"),
    ):
        fast = RECIPES["hada"]
        assert fast.with_settings({flat: value}) == fast.with_settings({dotted: value}) != fast
    with pytest.raises(UsageError, match="given twice"):
        RECIPES["fast"].with_settings({"queue": "5", "loss.queue": "6"})
    with pytest.raises(UsageError, match=r"Did you mean 'loss\.queue'"):
        RECIPES["fast"].with_settings({"loss.queu": "5"})
    for record in ("loss", "network.edges"):
        with pytest.raises(UsageError, match=f"unknown recipe setting '{record}'"):
            RECIPES["fast"].with_settings({record: "5"})


def test_flat_values_of_old_runs_are_read():
    for made in RECIPES.values():
        assert Recipe.from_json(made.flat()) == made
        assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made
    for bad in ({"loss": 5}, {"loss": {"epochs": 1}}, {"queue": {"a": 1}}):
        with pytest.raises(UsageError, match="unknown recipe setting"):
            Recipe.from_json(bad)


def test_every_pair_loss_has_a_weight():
    assert set(PAIR_LOSSES) | {"nce", "itm"} == set(LossSettings().weights())
