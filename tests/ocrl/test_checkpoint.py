import json
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

import ocrl
from ocrl import checkpoint

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}


def save(path, *, model=None, config=LINEAR, step=7, **changes):
    model = checkpoint.build(config) if model is None else model
    checkpoint.save(path, model, config=config, step=step, env="sprites", **changes)
    return model


def test_a_model_comes_back_with_its_weights_in_eval_mode(tmp_path):
    model = save(tmp_path / "checkpoint")
    for path in (tmp_path, tmp_path / "checkpoint", str(tmp_path)):
        loaded = ocrl.load(path)
        assert torch.equal(loaded.weight, model.weight) and not loaded.training


def test_the_folder_is_readable_without_this_library(tmp_path):
    save(tmp_path / "c", metrics={"fg_ari": 0.5}, fingerprint="abc")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "config.yaml",
        "meta.json",
        "model.safetensors",
    ]
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    assert meta == {
        "version": 1,
        "step": 7,
        "env": "sprites",
        "metrics": {"fg_ari": 0.5},
        "fingerprint": "abc",
    }
    assert OmegaConf.load(tmp_path / "c" / "config.yaml") == LINEAR
    assert set(load_file(tmp_path / "c" / "model.safetensors")) == {"weight", "bias"}


def test_interpolations_are_resolved_when_saved(tmp_path):
    config = OmegaConf.create({"size": 3, "model": {**LINEAR, "in_features": "${size}"}})
    save(tmp_path / "c", config=config.model)
    assert checkpoint.read_config(tmp_path / "c")["in_features"] == 3


def test_nested_targets_lists_and_names_are_built():
    config = {
        "_target_": "torch.nn.ModuleDict",
        "modules": {"a": LINEAR, "b": {"_target_": "torch.nn.Identity"}},
    }
    built = checkpoint.build(config)
    assert isinstance(built["a"], nn.Linear) and isinstance(built["b"], nn.Identity)


def test_resume_state_comes_back(tmp_path):
    state = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "elapsed": 1.5}
    save(tmp_path / "c", resume=state)
    found = checkpoint.read_resume(tmp_path / "c")
    assert found["elapsed"] == 1.5
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], torch.ones(2))


def test_other_weights_than_the_models_own_can_be_saved(tmp_path):
    weights = {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}
    save(tmp_path / "c", weights=weights)
    assert torch.equal(ocrl.load(tmp_path / "c").bias, torch.ones(2))


def test_weights_that_share_memory_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save(tmp_path / "c", model=model)
    assert torch.equal(
        checkpoint.read_weights(tmp_path / "c")["1.weight"], model[0].weight.detach()
    )


# --- nothing half-written -----------------------------------------------------------------------


class PowerCut(Exception):
    pass


def cut(*args, **kwargs):
    raise PowerCut


@pytest.mark.parametrize("where", ["save_file", "_sync", "_swap", "json.dumps", "torch.save"])
def test_the_previous_checkpoint_survives_a_failure_at_any_point(tmp_path, monkeypatch, where):
    path = tmp_path / "checkpoint"
    save(path, step=1)
    monkeypatch.setattr(f"ocrl.checkpoint.{where}", cut)
    with pytest.raises(PowerCut):
        save(path, step=2, resume={})
    assert checkpoint.read_meta(tmp_path)["step"] == 1
    ocrl.load(tmp_path)
    monkeypatch.undo()
    save(path, step=3)
    assert checkpoint.read_meta(tmp_path)["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_crash_between_the_two_renames_leaves_the_previous_one_to_load(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    save(path, step=1)
    rename, calls = type(path).rename, []

    def once(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise PowerCut
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", once)
    with pytest.raises(PowerCut):
        save(path, step=2)
    monkeypatch.undo()
    assert not path.exists()
    assert checkpoint.read_meta(tmp_path)["step"] == 1 and checkpoint.read_meta(path)["step"] == 1
    save(path, step=3)
    assert checkpoint.read_meta(tmp_path)["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "checkpoint", step=1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "checkpoint", step=2)
    assert checkpoint.read_meta(tmp_path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


# --- checkpoints that are wrong -----------------------------------------------------------------


def test_another_version_is_refused(tmp_path):
    save(tmp_path / "c")
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(ValueError, match="expected version 1, got 99"):
        ocrl.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "content"),
    [("meta.json", b"{"), ("meta.json", b"[]"), ("model.safetensors", b"x"), ("config.yaml", b"{")],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    save(tmp_path / "c")
    (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        ocrl.load(tmp_path / "c")


def test_a_missing_file_is_named(tmp_path):
    save(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        ocrl.load(tmp_path / "c")


def test_a_truncated_resume_state_is_named(tmp_path):
    save(tmp_path / "c", resume={"elapsed": 1.0})
    file = tmp_path / "c" / "resume" / "state.pt"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"state\.pt"):
        checkpoint.read_resume(tmp_path / "c")


def test_no_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"meta\.json.*nothing"):
        ocrl.load(tmp_path / "nothing")


def test_weights_of_another_shape_are_refused(tmp_path):
    save(tmp_path / "c")
    (tmp_path / "c" / "config.yaml").write_text(OmegaConf.to_yaml(LINEAR | {"out_features": 5}))
    with pytest.raises(ValueError, match="do not fit the configuration"):
        ocrl.load(tmp_path / "c")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.load",
        "torch.nn.functional.torch.load",
        "torch.nn.functional.relu",
        "torch.nn.modules.module.warnings.warn",
        "ocrl.checkpoint.os.system",
        "ocrl.checkpoint.load",
        "ocrl.checkpoint.shutil.rmtree",
        "ocrl.checkpoint.DictConfig",
        "ocrl.checkpoint.nn.Linear2",
        "ocrl.nowhere.Thing",
        "ocrl.",
        "ocrl..x",
        "torch.nn.Parameter",
        "ocrl.types.Clip",
        "ocrl_evil.Module",
        "",
        "Linear",
    ],
)
def test_only_module_classes_of_ours_and_of_torch_are_built(target):
    with pytest.raises(ValueError, match=r"decoder: expected _target_ .* got"):
        checkpoint.build({"_target_": "torch.nn.ModuleDict", "decoder": {"_target_": target}})


def test_looking_for_a_target_imports_no_foreign_module(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("stranger.Thing", "ocrl.stranger.Thing", "torch.nn.stranger.Thing"):
        with pytest.raises(ValueError, match="expected _target_"):
            checkpoint.build({"_target_": target})
    assert "stranger" not in sys.modules


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"cannot build torch.nn.Linear.*wings"):
        checkpoint.build(LINEAR | {"wings": 2})


def test_resume_state_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch executed",))

    save(tmp_path / "c", resume={})
    torch.save({"x": Evil()}, tmp_path / "c" / "resume" / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt"):
        checkpoint.read_resume(tmp_path / "c")


# --- comparing ----------------------------------------------------------------------------------


def test_the_digest_follows_weights_and_configuration(tmp_path):
    model = save(tmp_path / "a")
    save(tmp_path / "b", model=model, step=9, metrics={"x": 1.0})
    save(tmp_path / "c")
    digests = [checkpoint.digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


class Coded(nn.Module):
    """Something that wraps an encoder."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.codes = nn.Linear(2, 2)


def test_an_encoder_or_what_it_wraps_takes_over_trained_weights(tmp_path):
    model = nn.Module()
    model.encoder, model.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
    save(tmp_path / "c", model=model, config={"encoder": LINEAR})
    plain, wrapping = nn.Linear(3, 2), Coded(nn.Linear(3, 2))
    codes = wrapping.codes.weight.clone()
    for encoder in (plain, wrapping):
        checkpoint.load_encoder(encoder, tmp_path / "c")
    assert torch.equal(plain.weight, model.encoder.weight)
    assert torch.equal(wrapping.encoder.bias, model.encoder.bias)
    assert torch.equal(wrapping.codes.weight, codes)
    for other in (nn.Linear(3, 4), Coded(nn.Linear(4, 2))):
        with pytest.raises(ValueError, match=r"got those of torch\.nn\.Linear or of other sizes"):
            checkpoint.load_encoder(other, tmp_path / "c")


CONFIGS = st.recursive(
    st.none() | st.integers() | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("xy", min_size=1), inner),
    max_leaves=6,
)


@given(one=CONFIGS, other=CONFIGS)
def test_a_difference_is_found_exactly_where_there_is_one(one, other):
    assert checkpoint.describe_difference({"k": one}, {"k": one}) is None
    found = checkpoint.describe_difference({"k": one}, {"k": other})
    assert (found is None) == (one == other)


def test_a_difference_is_named_by_its_path():
    found = checkpoint.describe_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}})
    assert found == "its a.b is [1, 2], this run's is [1, 3]"
    assert checkpoint.describe_difference({"a": {}}, {"a": {"c": None}}) == "only this run has a.c"
    assert checkpoint.describe_difference({"a": 1, "c": 2}, {"a": 1}) == "only it has c"


# --- the hub ------------------------------------------------------------------------------------


class FakeHub:
    """Keeps what is uploaded in a folder."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, name, *, private, exist_ok):
        assert private and exist_ok
        (self.root / name).mkdir(parents=True)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns):
        for name in allow_patterns:
            (self.root / repo_id / name).write_bytes((folder_path / name).read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, name, *, revision, allow_patterns):
        return str(self.root / name)


def test_a_model_goes_to_the_hub_and_comes_back_without_its_resume_state(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path / "hub"))
    model = save(tmp_path / "c", resume={"elapsed": 1.0})
    address = checkpoint.push_to_hub(tmp_path / "c", "me/slots", private=True)
    assert address == "https://hub/me/slots"
    assert not (tmp_path / "hub" / "me" / "slots" / "resume").exists()
    assert torch.equal(checkpoint.from_pretrained("me/slots").weight, model.weight)


def test_without_the_hubs_package_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'ocrl\[hub\]'"):
        checkpoint.from_pretrained("me/slots")
