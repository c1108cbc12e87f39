"""The job from the form, the API and a link."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from barber.bundled import MODEL_DIR
from barber.config import AUTO, Granularity, Order, PruneConfig
from barber.errors import UserError
from barber.fields import Group
from barber.settings import SETTINGS, SHOWN
from ui import form, settings
from ui.catalogue import CATALOGUE


def test_the_defaults_are_a_job_and_a_link_keeps_them():
    spec = settings.to_spec(settings.DEFAULTS)
    assert isinstance(spec.prune, PruneConfig)
    link = {name: "" if value is None else str(value) for name, value in settings.DEFAULTS.items()}
    assert settings.from_query(link) == settings.DEFAULTS
    assert settings.from_query({"nsamples": "many", "__theme": "dark", "seed": "3"}) == {"seed": 3}
    assert settings.from_query({"method": "<b>", "metric": "X", "threshold": "nan", "granularity": "layer"}) == {
        "granularity": "layer"
    }


def test_the_form_splits_the_threshold_in_two():
    assert settings.from_form(*settings.FORM.values()) == settings.to_spec(settings.DEFAULTS)
    for threshold, switch in (("auto", "auto"), (0.25, "fixed")):
        link = settings.from_query({"threshold": str(threshold), "rounds": "3", "reconstruct": "true"})
        filled = settings.FORM | settings.to_form(link)
        assert filled["swaps"] == switch
        config = settings.from_form(*filled.values()).prune
        assert (config.threshold, config.rounds, config.reconstruct) == (threshold, 3, True)
    assert settings.to_form({"seed": 3}) == {"seed": 3}
    assert settings.from_query({"refiner": "comb", "target": "moon", "allocation": "owl"}) == {"allocation": "owl"}


def test_the_order_is_that_of_a_rebuild():
    def order(**changes: object) -> Order:
        return settings.to_spec(settings.DEFAULTS | {"order": "one-pass"} | changes).prune.order

    assert order() == order(rebuild=False, reconstruct=True) == Order.ONE_PASS
    assert order(rebuild=False) == Order.PAPER
    assert settings.from_query({"order": "one-pass"}) == {"order": "one-pass"}
    assert settings.from_query({"order": "two-pass"}) == {}
    with pytest.raises(UserError, match="Order 'two-pass' is unknown"):
        order(order="two-pass")


@pytest.mark.parametrize(
    ("given", "limit"), [("12GiB", "12GIB"), (" 1.5 gb ", "1.5GB"), ("800MB", "800MB"), ("", None), (None, None)]
)
def test_a_memory_limit_is_a_size(given, limit):
    spec = settings.to_spec(settings.DEFAULTS | {"max_memory": given, "stream": True})
    assert (spec.max_memory, spec.stream) == (limit, True)


@pytest.mark.parametrize("given", ["much", "12", "0GB", "0.0 MB", "-3GB", "1.2.3GB", "GB"])
def test_other_texts_are_refused_as_a_memory_limit(given):
    with pytest.raises(UserError, match="is not a size: give one like 12GiB"):
        settings.to_spec(settings.DEFAULTS | {"max_memory": given})


DEPENDENT = {
    "swaps", "threshold", "allocation", "refiner", "granularity", "metric", "rounds", "target", "order",
    "retain_reconstruction",
}  # fmt: skip


def visible(**changes: object) -> set[str]:
    defaults = {name: SETTINGS[name].default for name in form.DECIDING}
    return {name for name, shown in form.visible(defaults | changes).items() if shown and name in DEPENDENT}


def test_the_form_shows_what_has_an_effect():
    of_barber = {"swaps", "metric", "rounds"}
    fixed = of_barber | {"threshold", "granularity", "refiner", "target", "order", "allocation"}
    assert visible(threshold=settings.FIXED) == fixed
    assert visible(threshold=AUTO) == fixed - {"threshold", "granularity"}
    assert visible(refiner="dsnot") == fixed - of_barber - {"threshold", "granularity", "target"}
    assert visible(refiner="dsnot", reconstruct=True) == visible(refiner="dsnot") | {"target"}
    assert visible(barber=False) == {"allocation"}
    assert visible(barber=False, reconstruct=True) == {"allocation", "target", "order"}
    assert visible(method="sparsegpt") == fixed | {"retain_reconstruction"}


def test_what_has_no_effect_reaches_no_run():
    given = {"method": "wanda", "retain_reconstruction": True, "granularity": "layer", "threshold": AUTO}
    prune = settings.to_spec(settings.DEFAULTS | given).prune
    assert (prune.retain_reconstruction, prune.granularity) == (False, Granularity.OUTPUT)
    prune = settings.to_spec(settings.DEFAULTS | given | {"method": "sparsegpt", "threshold": 0.1}).prune
    assert (prune.retain_reconstruction, prune.granularity) == (True, Granularity.LAYER)
    assert settings.to_spec(settings.DEFAULTS | {"refiner": "dsnot", "target": "dense-stream"}).prune.target == "block"


def test_every_setting_of_the_form_has_a_group_and_a_title():
    placed = [one for group in Group for row in form.rows(group) for one in row]
    assert sorted(one.public for one in placed) == sorted(SHOWN)
    assert all(one.title for one in placed)
    assert [[one.public for one in row] for row in form.rows(Group.FIRST)][:2] == [["model"], ["method", "sparsity"]]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sparsity": "0"}, "Sparsity ratio 0 is not allowed"),
        ({"sparsity": "4"}, "Sparsity ratio 4 is not allowed"),
        ({"sparsity": ""}, "Sparsity is empty"),
        ({"nsamples": 12.7}, "Samples 12.7 is not allowed: give a whole number"),
        ({"nsamples": 10**8}, "Samples 100000000 is not allowed"),
        ({"seed": None}, "Seed is empty"),
        ({"seed": True}, "Seed True is not a number"),
        ({"seqlen": 0}, "Sequence length 0 is not allowed"),
        ({"rounds": float("inf")}, "Rounds inf is not allowed"),
        ({"model": " "}, "Model is empty"),
        ({"evaluation": " , "}, "is empty"),
        ({"rebuild": "perhaps"}, "neither on nor off"),
        ({"threshold": "auto", "nsamples": 3}, "uses every 4th"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        settings.to_spec(settings.DEFAULTS | wrong)


def test_every_wrong_value_has_its_sentence():
    form_values = settings.FORM | {"seed": "", "nsamples": "12.7", "sparsity": "0"}
    wrong = settings.problems(*form_values.values())
    assert sorted(wrong) == ["nsamples", "seed", "sparsity"]
    assert wrong["seed"].startswith("Seed is empty")
    assert settings.problems(*settings.FORM.values()) == {}
    assert "uses every 4th" in settings.problems(*(settings.FORM | {"nsamples": "3"}).values())[""]


def test_a_value_that_is_not_shown_is_never_wrong():
    hidden = {"rounds": "0", "threshold": "much", "granularity": "layer"}
    values = settings.DEFAULTS | hidden | {"rebuild": False}
    assert settings.to_spec(values) == settings.to_spec(settings.DEFAULTS | {"rebuild": False})
    assert set(settings.problems(*(settings.FORM | {"rounds": "0"}).values())) == {"rounds"}
    assert settings.problems(*(settings.FORM | {"rounds": "0", "rebuild": False}).values()) == {}


def test_the_form_knows_what_has_changed():
    before = list(settings.FORM.values())
    assert settings.changes(before, *before) == []
    assert settings.changes(before, *(settings.FORM | {"seed": "00"}).values()) == []
    assert settings.changes(before, *(settings.FORM | {"granularity": "layer"}).values()) == []
    assert settings.changes(before, *(settings.FORM | {"seed": "1", "sparsity": "2:4"}).values()) == ["Pattern", "Seed"]
    fixed = settings.FORM | {"swaps": "fixed"}
    assert settings.changes(before, *fixed.values()) == ["Threshold", "Swaps happen within"]


def test_a_space_gives_no_access_to_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("SPACE_ID", "someone/barber")
    (tmp_path / "text.txt").write_text("secret")
    for changes in (
        {"model": str(tmp_path)},
        {"model": "./assets"},
        {"model": "assets"},
        {"calibration": str(tmp_path / "text.txt")},
        {"evaluation": f"wikitext2,{tmp_path / 'text.txt'}"},
    ):
        with pytest.raises(UserError, match="cannot be used here"):
            settings.to_spec(settings.DEFAULTS | changes)
    assert all(settings.to_spec(settings.DEFAULTS | {"model": entry.name}) for entry in CATALOGUE)


def test_the_catalogue_knows_the_size_of_the_bundled_model():
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as file:
        weights = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (no mapping)
    assert CATALOGUE[0].name == "storyteller"
    assert CATALOGUE[0].size == f"{weights / 1e6:.1f} M"
