"""What the shared types promise."""

import torch

from ocrl.types import Camera, SlotOutput


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
