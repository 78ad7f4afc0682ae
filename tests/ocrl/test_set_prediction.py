import math

import pytest
import torch
from torch import Tensor, nn

from ocrl.average_precision import PredictedSets
from ocrl.decoders.mlp import MLPDecoder
from ocrl.decoders.properties import PropertyDecoder
from ocrl.properties import PropertySpec
from ocrl.set_prediction import SetPredictionMonitor, evaluate_set_prediction, score, spec_of
from ocrl.types import Clip, SlotOutput

SPEC = PropertySpec(
    {"shape": ["a", "b", "c"]}, coordinates=["x", "y"], low=[0, 0], high=[1, 1], scale=4
)


def pool(classes, places, *, presence=None, num_rows=4):
    """One frame whose objects are of classes 0, 1 and 2 at x = 0, 1, 2, and padding."""
    num = len(classes)
    true = torch.zeros(1, num_rows, 2)
    true[0, :3, 0] = torch.arange(3.0)
    return PredictedSets(
        presence=torch.tensor([presence or [1.0] * num]),
        classes=torch.tensor(classes).view(1, num, 1),
        coordinates=torch.stack([torch.tensor(places), torch.zeros(num)], -1)[None],
        is_object=(torch.arange(num_rows) < 3)[None],
        true_classes=torch.tensor([0, 1, 2] + [0] * (num_rows - 3)).view(1, num_rows, 1),
        true_coordinates=true,
    )


def test_a_perfect_prediction():
    result = score(SPEC, pool([2, 0, 1, 0], [2.0, 0.0, 1.0, 9.0], presence=[1.0, 1.0, 1.0, -1.0]))
    assert set(result.ap.values()) == {1.0} and result.accuracy == {"shape": 1.0}
    assert result.distance == 0 and result.count == 1
    assert (result.num_frames, result.num_objects) == (1, 3)
    assert result.to_json()["figures"]["ap/0.0625"] == 1.0


def test_classes_decide_who_is_matched_and_padding_takes_no_slot():
    # The slots know the classes and stand far off; ten rows of padding want none of them.
    far = score(SPEC, pool([0, 1, 2], [50.0, 51.0, 52.0], num_rows=13))
    assert far.accuracy == {"shape": 1.0} and far.distance == 50
    assert far.ap[math.inf] == 1 and far.ap[1.0] == 0


def test_objects_without_a_slot_are_wrong_in_everything():
    few = score(SPEC, pool([0], [0.5]))
    assert few.accuracy["shape"] == pytest.approx(1 / 3)
    assert few.distance == 0.5 and few.count == 0
    assert few.ap[math.inf] == pytest.approx(1 / 3) and few.ap[0.5] == 0


def test_without_objects_figures_that_are_none_are_left_out():
    sets = pool([0], [0.5])
    empty = PredictedSets(**{**vars(sets), "is_object": torch.zeros_like(sets.is_object)})
    assert set(score(SPEC, empty).scalars()) == {"count"}


class Reader(nn.Module):
    """A model that reads its slots from the picture, with heads that copy them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = PropertyDecoder(
            6, spec=SPEC, heads="shared", hidden_dims=[], image_size=[2, 2]
        )
        nn.init.eye_(self.decoder.heads[0].layers[0].weight)

    def encode(self, clip: Clip) -> SlotOutput:
        slots = clip.video.flatten(2)[..., :12].unflatten(-1, (2, 6)).float()
        attn = torch.full((*slots.shape[:3], 4), 0.5)
        return SlotOutput(slots, attn)


def make_clip(outputs: Tensor) -> Clip:
    """A clip whose frames hold outputs (B,T,2,6), with two objects at (0.5, 0.5) of class 1."""
    video = outputs.flatten(2).unflatten(-1, (3, 2, 2))
    shape = video.shape[:2]
    targets = {
        "presence": torch.ones(*shape, 2, dtype=torch.bool),
        "coordinates": torch.full((*shape, 2, 2), 0.5),
        "factors/shape": torch.ones(*shape, 2, dtype=torch.int64),
    }
    return Clip(video, torch.zeros(shape, dtype=torch.bool), properties=targets)


def test_a_model_is_evaluated_on_all_frames_of_all_clips():
    outputs = torch.zeros(2, 3, 2, 6)
    outputs[..., 3] = 1.0  # class 1
    outputs[..., 5] = 2.0  # present
    outputs[0, 0, 0, 0] = 3.0  # one is off to the right
    model = Reader().train()
    clips = [make_clip(outputs), make_clip(outputs[:1])]
    result = evaluate_set_prediction(model, clips, device=torch.device("cpu"))
    assert model.training
    assert (result.num_frames, result.num_objects) == (9, 18)
    assert result.accuracy == {"shape": 1.0} and result.count == 1.0
    off = 4 * (torch.tensor(3.0).sigmoid().item() - 0.5)
    assert result.distance == pytest.approx(2 * off / 18)
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_set_prediction(model, [], device=torch.device("cpu"))
    monitor = SetPredictionMonitor(lambda: clips, device=torch.device("cpu"))
    with pytest.raises(TypeError, match="expected a SlotModel, got Reader"):
        monitor(model, step=1, board=None)


def test_a_model_of_something_else_is_refused():
    model = nn.Module()
    model.decoder = MLPDecoder(4, image_size=[8, 8], patch_size=4, out_dim=2, hidden_dims=[3])
    with pytest.raises(ValueError, match=r"decoder=properties.*got MLPDecoder"):
        spec_of(model)
