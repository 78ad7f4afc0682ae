"""Targets of set prediction, from tables made here and from the environments' own."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ocrl.envs
from ocrl.data.clips import ClipLoader, evaluation_clips
from ocrl.data.property_table import PropertyTable, most_objects
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs.collect import collect
from ocrl.properties import PropertySpec

SPECS = Path(ocrl.configs.__file__).parent / "properties"
METADATA = {
    "categories": ["cat", "dog", "bird"],
    "attribute_names": ["hue", "weight", "x", "y", "z"],
    "attribute_classes": {"hue": ["red", "blue", "grey"]},
}


def spec_of(name):
    settings = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    return PropertySpec(**{key: value for key, value in settings.items() if key != "_target_"})


def make(**changes):
    settings = {
        "factors": {"category": ["dog", "cat"], "hue": ["red", "grey"], "weight": [1.5, 4]},
        "coordinates": ["x", "y", "z"],
        "low": [-3, -3, 0],
        "high": [3, 3, 6],
        "scale": 6,
    }
    return PropertySpec(**settings | changes)


def write(path, rows=3, **arrays):
    """A store in which every frame holds: a dog, nothing, a bird, a cat and a blue dog."""
    attributes = [
        [0, 1.5, -3, 0, 3],
        [0] * 5,
        [0, 1.5, 1, 1, 1],
        [2, 4, 3, 1.5, 6],
        [1, 4, 0, 0, 0],
    ]
    tables = {
        "objects/id": np.array([4, 0, 5, 6, 7], np.uint16),
        "objects/category": np.array([1, 0, 2, 0, 1], np.uint8),
        "objects/position": np.full((5, 2), 0.5, np.float32),
        "objects/attributes": np.array(attributes, np.float32),
    } | arrays
    with EpisodeWriter(path, metadata=METADATA) as writer:
        for _ in range(2):
            repeated = {name: np.repeat(row[None], rows, 0) for name, row in tables.items()}
            writer.append({"frames": np.zeros((rows, 4, 4, 3), np.uint8), **repeated})
    return EpisodeStore(path)


def test_targets_by_hand(tmp_path):
    loader = ClipLoader(
        write(tmp_path), clip_length=2, batch_size=3, seed=0, split="all", properties=make()
    )
    targets = loader.batch(0).properties
    assert set(targets) == {
        "presence", "coordinates", "factors/category", "factors/hue", "factors/weight"
    }  # fmt: skip
    # The bird and the blue dog are of classes that the spec leaves out; who is there comes first.
    expected = [True, True, False, False, False]
    assert targets["presence"].tolist() == [[expected] * 2] * 3
    assert targets["factors/category"][0, 0].tolist() == [0, 1, 0, 0, 0]
    assert targets["factors/hue"][0, 0].tolist() == [0, 1, 0, 0, 0]
    assert targets["factors/weight"][0, 0].tolist() == [0, 1, 0, 0, 0]
    places = [[0, 0.5, 0.5], [1, 0.75, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(targets["coordinates"][2, 1], torch.tensor(places).float())
    assert most_objects(write(tmp_path / "other"), make()) == 2
    assert most_objects(EpisodeStore(tmp_path), make(factors={"weight": [1.5, 4]})) == 4


def test_the_tables_own_columns_stay_where_no_targets_are_asked_for(tmp_path):
    store = write(tmp_path)
    loader = ClipLoader(store, clip_length=2, batch_size=1, seed=0, split="all", objects=True)
    assert set(loader.batch(0).properties) == {"id", "category", "position", "attributes"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factors": {"taste": ["sweet", "sour"]}}, "factor 'taste' in the object tables .* got"),
        ({"factors": {"category": ["dog", "wolf"]}}, r"\['cat', 'dog', 'bird'\], got 'wolf'"),
        ({"factors": {"hue": ["red", "green"]}}, r"\['red', 'blue', 'grey'\], got 'green'"),
        (
            {"factors": {"weight": ["light", "heavy"]}},
            "name the classes of factor 'weight', as \\['light', 'heavy'\\] are names, got none",
        ),
        ({"coordinates": ["x", "height"]}, "coordinate 'height'"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_at_once(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        PropertyTable(make(**change), write(tmp_path))


def test_values_that_are_no_class_are_refused(tmp_path):
    store = write(tmp_path / "store")
    with pytest.raises(ValueError, match=r"factor 'weight' .* got 4"):
        most_objects(store, make(factors={"weight": [1.5, 3]}))
    wrong = write(tmp_path / "wrong", **{"objects/category": np.full(5, 9, np.uint8)})
    with pytest.raises(ValueError, match=r"factor 'category' .* got 9"):
        most_objects(wrong, make())
    with pytest.raises(ValueError, match=r"3 coordinates in .* got 2"):
        most_objects(store, make(coordinates=["position"]))


def test_episodes_without_tables_are_refused(tmp_path):
    with EpisodeWriter(tmp_path, metadata={}) as writer:
        writer.append({"frames": np.zeros((3, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="expected object tables"):
        PropertyTable(make(), EpisodeStore(tmp_path))


@pytest.mark.parametrize("name", ["sprites", "minigrid", "crafter"])
def test_every_environment_has_the_properties_of_its_file(tmp_path, name):
    arguments = {"area": [16, 16]} if name == "crafter" else {}
    collect(
        name,
        arguments,
        path=tmp_path,
        num_steps=12,
        policy="random",
        num_workers=0,
        seed=1,
        episode_length=6,
        progress=False,
    )
    store, spec = EpisodeStore(tmp_path), spec_of(name)
    (clip,) = evaluation_clips(
        store, clip_length=7, num_clips=2, batch_size=2, split="all", properties=spec
    )
    (raw,) = evaluation_clips(
        store, clip_length=7, num_clips=2, batch_size=2, split="all", objects=True
    )
    targets, tables = clip.properties, raw.properties
    assert targets["presence"].any(-1).all()
    assert torch.equal(targets["presence"].sum(-1), (tables["id"] != 0).sum(-1))
    assert most_objects(store, spec) == int((tables["id"] != 0).sum(-1).max())
    env = ocrl.envs.make(name, **arguments)
    names = {"category": env.categories, **env.attribute_classes}
    for sample, frame in [(0, 0), (1, 6)]:
        rows = np.flatnonzero(tables["id"][sample, frame])
        for place, row in enumerate(rows):
            near = targets["coordinates"][sample, frame, place]
            torch.testing.assert_close(near, tables["position"][sample, frame, row])
            for factor, classes in spec.factors.items():
                index = int(targets[f"factors/{factor}"][sample, frame, place])
                if factor == "category":
                    value = tables["category"][sample, frame, row]
                else:
                    column = env.attribute_names.index(factor)
                    value = tables["attributes"][sample, frame, row, column]
                if isinstance(classes[index], str):
                    assert names[factor][int(value)] == classes[index]
                else:
                    assert float(value) == pytest.approx(classes[index])
