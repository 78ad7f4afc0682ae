"""The ViT backbone on small random networks made here."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from ocrl.backbones.vit import ViT

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "image_size": 16,
}


@pytest.fixture(params=["ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SIZES)
    getattr(transformers, f"{request.param}Model")(config).save_pretrained(tmp_path)
    return str(tmp_path)


def make(path: str, **changes: object) -> ViT:
    arguments: dict[str, object] = {
        "image_size": [16, 16],
        "input_size": [16, 16],
        "layer": -1,
        "is_frozen": True,
        "out_dim": 8,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    return ViT(path, **{**arguments, **changes})  # type: ignore[arg-type]


def test_tokens_and_grid(folder: str) -> None:
    backbone = make(folder)
    assert backbone.grid == (4, 4) and backbone.out_dim == 8
    assert backbone(torch.rand(2, 3, 16, 16)).shape == (2, 16, 8)


def test_own_tokens_are_the_patches_before_the_final_norm(folder: str) -> None:
    backbone = make(folder, out_dim=None)
    assert backbone.out_dim == 16
    frames = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        output = backbone.network((frames - 0.5) / 0.2, output_hidden_states=True)
        tokens = backbone(frames)
        torch.testing.assert_close(tokens, output.hidden_states[-1][:, -16:])
        norm = getattr(backbone.network, "layernorm", None) or backbone.network.norm
        torch.testing.assert_close(norm(tokens), output.last_hidden_state[:, -16:])


def test_positions_are_interpolated_to_another_grid(folder: str) -> None:
    backbone = make(folder, image_size=[10, 10], input_size=[20, 12])
    assert backbone.grid == (5, 3)
    assert backbone(torch.rand(2, 3, 10, 10)).shape == (2, 15, 8)


def test_a_frozen_network_stays_in_eval_and_gets_no_gradient(folder: str) -> None:
    backbone = make(folder).train()
    assert not backbone.network.training and backbone.head.training
    backbone(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in backbone.network.parameters())
    assert all(p.grad is not None for p in backbone.head.parameters())


def test_a_tuned_network_gets_gradients(folder: str) -> None:
    backbone = make(folder, is_frozen=False).train()
    assert backbone.network.training
    backbone(torch.rand(2, 3, 16, 16)).square().sum().backward()
    weight = next(p for name, p in backbone.network.named_parameters() if "patch" in name)
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_views_are_more_tokens(folder: str) -> None:
    backbone = make(folder).eval()
    frames = torch.rand(2, 3, 3, 16, 16)
    tokens = backbone(frames)
    assert tokens.shape == (2, 48, 8)
    torch.testing.assert_close(tokens[:, 16:32], backbone(frames[:, 1]))


def test_input_size_must_be_whole_patches(folder: str) -> None:
    with pytest.raises(ValueError, match=r"multiples of the patch size 4 .* got \[16, 18\]"):
        make(folder, input_size=[16, 18])


def test_a_folder_without_network(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="expected a folder with config"):
        make(str(tmp_path))


def test_a_hub_out_of_reach_is_told_once_and_how_to_do_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(*_: object, **__: object) -> None:
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("We couldn't connect.\nMore.")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    before = logger.getEffectiveLevel()
    with pytest.raises(OSError, match=r"'some/name': We couldn't connect. .* vit=FOLDER"):
        make("some/name")
    assert not caplog.records and logger.getEffectiveLevel() == before


def test_a_folder_of_another_kind_of_network(tmp_path: Path) -> None:
    sizes = {name: SIZES[name] for name in SIZES if name not in ("patch_size", "image_size")}
    config = transformers.BertConfig(**sizes, vocab_size=11)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vision transformer .* got .* with a BertModel"):
        make(str(tmp_path))


def test_a_folder_with_the_weights_of_another_network(
    folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = {**SIZES, "num_hidden_layers": 1}
    other = tmp_path / "other"
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(other)
    (tmp_path / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"got weights without \d+ of its tensors"):
        make(folder)
    assert "MISSING" not in capfd.readouterr().err


def test_without_transformers_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'ocrl\[vit\]'"):
        make(str(tmp_path))


def test_the_last_blocks_alone_are_tuned(folder: str) -> None:
    backbone = make(folder, is_frozen=False, num_tuned_blocks=1).train()
    assert not backbone.network.training and backbone.head.training
    backbone(torch.rand(2, 3, 16, 16)).square().sum().backward()
    learning = {name for name, p in backbone.network.named_parameters() if p.requires_grad}
    moved = {name for name, p in backbone.network.named_parameters() if p.grad is not None}
    block = {name for name, _ in backbone.network.named_parameters() if ".1." in name}
    assert block and learning == moved == block


def test_blocks_behind_the_layer_are_not_tuned(folder: str) -> None:
    backbone = make(folder, is_frozen=False, num_tuned_blocks=4, layer=1)
    learning = {name for name, p in backbone.network.named_parameters() if p.requires_grad}
    assert learning and all(".0." in name for name in learning)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(folder, is_frozen=False, num_tuned_blocks=0)
