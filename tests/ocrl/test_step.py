import pytest
import torch
from torch import nn

from ocrl.step import parameter_groups, seed_step, split_clip
from ocrl.types import Camera, Clip


def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    decaying, others = parameter_groups(model)
    assert [tuple(p.shape) for p in decaying["params"]] == [(3, 2)]
    assert [tuple(p.shape) for p in others["params"]] == [(3,), (3,), (3,)]
    assert others["weight_decay"] == 0.0 and "weight_decay" not in decaying


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="parameters to train"):
        parameter_groups(nn.Identity())


def test_the_longest_name_of_a_part_decides_on_its_rate():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Linear(4, 1))
    groups = parameter_groups(model, {"0": {"factor": 2.0}, "0.1": {"factor": 3.0}})
    found = [(group.get("factor"), [tuple(p.shape) for p in group["params"]]) for group in groups]
    assert found == [
        (None, [(1, 4)]),
        (None, [(1,)]),
        (2.0, [(3, 2)]),
        (2.0, [(3,)]),
        (3.0, [(4, 3)]),
        (3.0, [(4,)]),
    ]
    with pytest.raises(ValueError, match="of their own that learn, got 'decoder'"):
        parameter_groups(model, {"decoder": {"factor": 2.0}})


def draw(seed, step, rank):
    seed_step(seed, step=step, rank=rank)
    return torch.rand(4)


def test_random_numbers_follow_from_seed_step_and_rank_alone():
    first = draw(1, 2, 3)
    torch.rand(100)
    assert torch.equal(draw(1, 2, 3), first)
    neighbours = [draw(*at) for at in [(0, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2)]]
    assert not any(torch.equal(first, other) for other in neighbours)


def test_split_clip_cuts_every_tensor_along_the_batch():
    camera = Camera(torch.rand(5, 2, 1, 3, 3), torch.rand(5, 2, 1, 4, 4))
    clip = Clip(
        torch.arange(5).view(5, 1, 1, 1, 1).expand(5, 2, 3, 4, 4),
        torch.zeros(5, 2, dtype=torch.bool),
        reward=torch.arange(10.0).view(5, 2),
        segmentation={"scene": torch.arange(5).view(5, 1, 1, 1).expand(5, 2, 4, 4)},
        camera=camera,
    )
    pieces = split_clip(clip, 2)
    assert [piece.batch_size for piece in pieces] == [3, 2]
    assert torch.equal(torch.cat([p.video for p in pieces]), clip.video)
    assert torch.equal(torch.cat([p.reward for p in pieces]), clip.reward)
    assert torch.equal(
        torch.cat([p.segmentation["scene"] for p in pieces]), clip.segmentation["scene"]
    )
    assert torch.equal(torch.cat([p.camera.intrinsics for p in pieces]), camera.intrinsics)


def test_more_pieces_than_clips_give_one_clip_each():
    clip = Clip(torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 1, dtype=torch.bool))
    assert [piece.batch_size for piece in split_clip(clip, 8)] == [1, 1]
    assert split_clip(clip, 1)[0] is clip
