"""What the shared types promise."""

import pytest
import torch

from ocrl.types import Camera, Clip, SlotOutput


def test_a_slot_output_maps_every_tensor_and_leaves_what_is_missing() -> None:
    output = SlotOutput(
        slots=torch.ones(1, 2, 3, 4),
        attn=torch.ones(1, 2, 3, 5),
        queries=torch.ones(1, 2, 3, 4),
        aux={"mixture_weights": torch.ones(1, 2, 3)},
        slot_mask=torch.ones(1, 2, 3),
    )
    doubled = output.map(lambda value: 2 * value)
    assert doubled.codes is None
    mapped = (doubled.slots, doubled.attn, doubled.queries, doubled.slot_mask)
    for value in (*mapped, doubled.aux["mixture_weights"]):
        assert value is not None and torch.equal(value, torch.full_like(value, 2))
    assert torch.equal(output.slots, torch.ones(1, 2, 3, 4))


def test_the_frames_of_a_camera_are_clips_of_their_own() -> None:
    camera = Camera(torch.rand(2, 3, 4, 3, 3), torch.rand(2, 3, 4, 4, 4))
    frames = camera.frames()
    assert frames.intrinsics.shape == (6, 1, 4, 3, 3)
    assert torch.equal(frames.extrinsics[4, 0], camera.extrinsics[1, 1])
    assert torch.equal(camera[1:].intrinsics, camera.intrinsics[:, 1:])


def posed() -> Clip:
    camera = Camera(torch.rand(2, 3, 4, 3, 3), torch.rand(2, 3, 4, 4, 4))
    return Clip(
        torch.rand(2, 3, 4, 3, 5, 6),
        torch.zeros(2, 3, dtype=torch.bool),
        segmentation={"entities": torch.randint(9, (2, 3, 4, 5, 6))},
        boxes=torch.rand(2, 3, 4, 7, 4),
        properties={"position": torch.rand(2, 3, 4, 7, 2), "id": torch.randint(9, (2, 3, 7))},
        camera=camera,
        depth=torch.rand(2, 3, 4, 5, 6),
    )


def test_views_are_taken_of_everything_that_has_them_for_each_sample() -> None:
    clip = posed()
    taken = clip.take_views(torch.tensor([[3, 0], [1, 2]]))
    assert taken.num_views == 2 and taken.is_first is clip.is_first
    for sample, views in enumerate(([3, 0], [1, 2])):
        assert torch.equal(taken.video[sample], clip.video[sample][:, views])
        assert torch.equal(
            taken.camera.extrinsics[sample], clip.camera.extrinsics[sample][:, views]
        )
        assert torch.equal(taken.depth[sample], clip.depth[sample][:, views])
        assert torch.equal(taken.boxes[sample], clip.boxes[sample][:, views])
        own, whole = (each.properties["position"][sample] for each in (taken, clip))
        assert torch.equal(own, whole[:, views])
        ids = clip.segmentation["entities"][sample][:, views]
        assert torch.equal(taken.segmentation["entities"][sample], ids)
    assert taken.properties["id"] is clip.properties["id"]


def test_one_camera_has_no_views_to_take() -> None:
    clip = Clip(torch.rand(2, 3, 3, 5, 6), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"several cameras \(B,T,V,C,H,W\), got \(2, 3, 3, 5, 6\)"):
        clip.take_views(torch.zeros(2, 1, dtype=torch.int64))
