"""CLEVR's folders, made small."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ocrl.configs
from ocrl.data.clevr import import_clevr
from ocrl.data.clips import evaluation_clips
from ocrl.properties import PropertySpec

ROOT = Path(__file__).parents[3]
OBJECTS = [
    {"shape": "cylinder", "color": "cyan", "material": "metal", "size": "small",
     "3d_coords": [1.5, -3.0, 0.35], "pixel_coords": [120, 40, 9.1], "rotation": 12.0},
    {"shape": "cube", "color": "gray", "material": "rubber", "size": "large",
     "3d_coords": [-1.5, 0.0, 0.7], "pixel_coords": [60, 20, 8.0], "rotation": 90.0},
]  # fmt: skip


def write(folder, *, split="val", is_flat=False, objects=(OBJECTS, OBJECTS[:1])):
    scenes = []
    images = folder / "images" if is_flat else folder / "images" / split
    images.mkdir(parents=True)
    (folder / "scenes").mkdir(exist_ok=True)
    for number, entries in enumerate(objects):
        name = f"CLEVR_{split}_{number:06}.png"
        Image.fromarray(np.full((80, 120, 3), 40 * number, np.uint8)).save(images / name)
        scenes.append({"image_index": number, "image_filename": name, "objects": entries})
    file = folder / "scenes" / f"CLEVR_{split}_scenes.json"
    file.write_text(json.dumps({"info": {"split": split}, "scenes": scenes}))
    return folder


def spec():
    file = Path(ocrl.configs.__file__).parent / "properties" / "clevr.yaml"
    settings = yaml.safe_load(file.read_text())
    return PropertySpec(**{key: value for key, value in settings.items() if key != "_target_"})


@pytest.mark.parametrize("is_flat", [False, True])
def test_scenes_become_targets(tmp_path, is_flat):
    folder = write(tmp_path / "clevr", is_flat=is_flat)
    store = import_clevr(folder, tmp_path / "store", split="val", image_size=(16, 16))
    assert len(store) == 2 and store.arrays["frames"].shape == (16, 16, 3)
    assert str(store.episode(1)["name"]) == "CLEVR_val_000001.png"
    assert sum(spec().sizes.values()) == 19
    clips = list(
        evaluation_clips(store, clip_length=1, num_clips=2, split="all", properties=spec())
    )
    clip = next(clip for clip in clips if clip.properties["presence"].sum() == 2)
    targets = {name: value[0, 0] for name, value in clip.properties.items()}
    assert targets["factors/size"].tolist() == [0, 1]
    assert targets["factors/material"].tolist() == [1, 0]
    assert targets["factors/shape"].tolist() == [2, 0]
    assert targets["factors/color"].tolist() == [6, 0]
    places = (torch.tensor([[1.5, -3.0, 0.35], [-1.5, 0.0, 0.7]]) + 3) / 6
    torch.testing.assert_close(targets["coordinates"], places)
    # Centres in the picture, whose whole width and height are kept.
    np.testing.assert_allclose(
        [row for row in store.episode(0)["objects/position"][0]], [[1.0, 0.5], [0.5, 0.25]]
    )


def test_what_is_missing_or_wrong_is_named(tmp_path):
    folder = write(tmp_path / "clevr")
    with pytest.raises(FileNotFoundError, match=r"CLEVR_train_scenes\.json; correct"):
        import_clevr(folder, tmp_path / "store", split="train", image_size=None)
    (folder / "images" / "val" / "CLEVR_val_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture CLEVR_val_000001\.png"):
        import_clevr(folder, tmp_path / "store", split="val", image_size=None)
    (folder / "scenes" / "CLEVR_val_scenes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no scenes of CLEVR's form"):
        import_clevr(folder, tmp_path / "store", split="val", image_size=None)
    other = write(tmp_path / "other", objects=([OBJECTS[0] | {"shape": "cone"}],))
    with pytest.raises(ValueError, match=r"shape of \['cube', .* got 'cone'"):
        import_clevr(other, tmp_path / "store", split="val", image_size=None)
    assert not (tmp_path / "store").exists()


def test_the_command(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location(
        "convert_episodes", ROOT / "scripts" / "convert_episodes.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    folder = write(tmp_path / "clevr")
    command = ["import-clevr", str(folder), str(tmp_path / "store"), "--image-size", "8", "8"]
    assert module.main([*command, "--split", "test"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert module.main([*command, "--split", "val"]) == 0
    assert "2 episodes, 2 frames" in capsys.readouterr().out
