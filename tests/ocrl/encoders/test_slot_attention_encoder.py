import torch

from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.encoders.slot_attention import SlotAttention
from ocrl.initializers import BoxInitializer, GaussianInitializer, PreheatedInitializer
from ocrl.interfaces import Initializer


def make(initializer: Initializer | None = None, num_iterations: int = 3) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(
        CNN([8], kernel_size=3, strides=[2], out_dim=8, image_size=[8, 8], position="linear"),
        initializer=initializer or GaussianInitializer(3, slot_dim=6, is_learned=True),
        num_slots=3,
        slot_dim=6,
        num_iterations=num_iterations,
        mlp_dim=12,
        gradient="full",
        eps_placement="attn",
    )


def test_contract_with_views() -> None:
    check_slot_encoder(make(), twin=make(), num_views=2)


def test_frames_are_independent_images() -> None:
    encoder = make().eval()
    video = torch.rand(2, 4, 3, 8, 8)
    is_first = torch.zeros(2, 4, dtype=torch.bool)
    output = encoder(video, is_first)
    tokens = encoder.backbone(video[:, 2])
    slots, attn = encoder.corrector(encoder.initializer(tokens), tokens, num_iterations=3)
    torch.testing.assert_close(output.slots[:, 2], slots)
    torch.testing.assert_close(output.attn[:, 2], attn)
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(encoder(video[:, order], is_first).slots, output.slots[:, order])


def test_noise_differs_between_frames_in_training() -> None:
    encoder = make().train()
    output = encoder(torch.rand(1, 1, 3, 8, 8).expand(1, 2, 3, 8, 8), torch.zeros(1, 2).bool())
    assert output.queries is not None
    assert not torch.allclose(output.queries[0, 0], output.queries[0, 1])


def test_boxes_hold_for_every_frame() -> None:
    initializer = BoxInitializer(3, slot_dim=6, hidden_dim=8, has_background=True, is_noisy=False)
    condition = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    check_slot_encoder(make(initializer), condition=condition)
    output = make(initializer)(
        torch.rand(3, 2, 3, 8, 8), torch.zeros(3, 2).bool(), condition=condition
    )
    assert output.queries is not None
    torch.testing.assert_close(output.queries[:, 0], output.queries[:, 1])
    assert not torch.allclose(output.queries[0], output.queries[1])


def test_every_frame_preheats() -> None:
    initializer = PreheatedInitializer(
        GaussianInitializer(3, slot_dim=6, is_learned=True),
        token_dim=8,
        slot_dim=6,
        num_heads=2,
        mlp_dim=12,
        detach_until=0.0,
    )
    output = make(initializer).eval()(torch.rand(2, 3, 3, 8, 8), torch.zeros(2, 3).bool())
    assert output.queries is not None
    warm = output.aux["preheat_queries"]
    torch.testing.assert_close(warm, output.queries)
    assert warm.requires_grad and warm.shape == (2, 3, 3, 6)
