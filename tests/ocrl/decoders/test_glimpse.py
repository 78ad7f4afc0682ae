import pytest
import torch
from torch import nn
from torch.nn import functional

from ocrl.decoders.glimpse import OUTSIDE, GlimpseDecoder
from ocrl.nn.location import join_placed


def make(*, slot_dim: int = 10, **changes) -> GlimpseDecoder:
    torch.manual_seed(0)
    arguments = dict(
        image_size=[16, 24], glimpse_size=8, num_cells=4, hidden_dims=[12], deviation=0.2
    )
    return GlimpseDecoder(slot_dim, **(arguments | changes))


def attention(*cells: int, num_tokens: int = 24) -> torch.Tensor:
    """The ground, and one slot on each of `cells` of 4 x 6 tokens."""
    owner = torch.zeros(num_tokens, dtype=torch.long)
    for slot, cell in enumerate(cells, start=1):
        owner[cell] = slot
    return functional.one_hot(owner, len(cells) + 1).T[None, None].float()


@pytest.mark.parametrize("poses", [{}, {"max_shift": 3.0, "max_zoom": 1.5}])
def test_equal_to_pictures_drawn_one_by_one(poses: dict[str, float]) -> None:
    decoder = make(**poses).double()
    slots = torch.randn(2, 1, 3, 10, dtype=torch.float64)
    attn = torch.randn(2, 1, 3, 24, dtype=torch.float64).softmax(2)
    attn[:, :, 0] += 1.0  # a clear ground
    frames = torch.rand(2, 1, 3, 16, 24, dtype=torch.float64)
    shifts, zooms = torch.zeros(2, 1, 3, 2, dtype=torch.float64), torch.ones(2, 1, 3)
    if poses:
        nn.init.normal_(decoder.pose.layers[-1].weight, generator=torch.Generator().manual_seed(1))
        pose = decoder.pose(slots).tanh()
        shifts, zooms = 3.0 * pose[..., :2], 1.5 ** pose[..., 2]
        assert shifts.abs().amax() > 1
        assert zooms.amax() - zooms.amin() > 0.3
    prior, output = decoder(slots, attn=attn), decoder(slots, frames, attn=attn)
    assert not prior.aux
    glimpses, colours = decoder.draw(slots), decoder.colour(slots).sigmoid()
    for b in range(2):
        logits = torch.full((3, 16, 24), OUTSIDE, dtype=torch.float64)
        logits[0] = 0.0
        for k in (1, 2):
            weights = attn[b, 0, k] / attn[b, 0, k].sum()
            index = torch.arange(24)
            middle = 16 * (weights * (index // 6 + 0.5) / 4).sum() + shifts[b, 0, k, 0]
            centre = 24 * (weights * (index % 6 + 0.5) / 6).sum() + shifts[b, 0, k, 1]
            picture = glimpses[b, 0, k].view(1, 1, 4, 4) - OUTSIDE
            y, x = torch.meshgrid(
                (torch.arange(16).double() + 0.5 - middle) / (4 * zooms[b, 0, k]),
                (torch.arange(24).double() + 0.5 - centre) / (4 * zooms[b, 0, k]),
                indexing="ij",
            )
            drawn = functional.grid_sample(
                picture, torch.stack([x, y], -1)[None], align_corners=False
            )
            logits[k] += drawn[0, 0]
        shares = logits.softmax(0)
        torch.testing.assert_close(prior.masks[b, 0], shares)
        recon = torch.einsum("khw,kc->chw", shares, colours[b, 0])
        torch.testing.assert_close(prior.recon[b, 0], recon)
        torch.testing.assert_close(output.recon[b, 0], recon)
        normal = torch.distributions.Normal(colours[b, 0, :, :, None, None], 0.2)
        joint = normal.log_prob(frames[b, 0]).sum(1).exp() * shares
        log_prob = output.aux["log_prob"][b, 0]
        torch.testing.assert_close(log_prob, joint.sum(0).log(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(output.masks[b, 0], joint / joint.sum(0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("poses", [{}, {"max_shift": 3.0, "max_zoom": 1.5}])
def test_slots_that_know_their_places_are_drawn_as_where_they_are_seen(poses) -> None:
    decoder = make(**poses).double()
    reading = make(slot_dim=13, reads_places=True, **poses).double()
    reading.load_state_dict(decoder.state_dict())
    features = torch.randn(2, 3, 3, 10, dtype=torch.float64)
    cells = torch.tensor([0, 8, 21])  # of 4 x 6
    attn = functional.one_hot(cells, 24).double().expand(2, 3, 3, 24).clone()
    attn[:, :, 2] += 0.5  # the ground, and its centre moves
    centres = torch.tensor([[0.5, 0.5], [1.5, 2.5], [2.0, 3.0]]).double() / torch.tensor([4, 6])
    places = (2 * centres - 1).expand(2, 3, 3, 2)
    is_placed = torch.tensor([[0.9], [1.1], [0.2]]).double().expand(2, 3, 3, 1)
    frames = torch.rand(2, 3, 3, 16, 24, dtype=torch.float64)
    assert decoder.needs_attn and not reading.needs_attn
    slots = join_placed(features, places, is_placed)
    expected, found = decoder(features, frames, attn=attn), reading(slots, frames)
    torch.testing.assert_close(found.recon, expected.recon)
    torch.testing.assert_close(found.masks, expected.masks, atol=1e-6, rtol=1e-5)
    moved = join_placed(features, places.flip(-1), is_placed)
    assert not torch.allclose(reading(moved).recon, found.recon, atol=1e-3)


def test_a_slot_is_seen_in_its_glimpse_only() -> None:
    decoder = make()
    with torch.no_grad():
        decoder.draw.layers[-1].bias.fill_(9.0)
    masks = decoder(torch.zeros(1, 1, 2, 10), attn=attention(7)).masks[0, 0]
    # The middle of token (1, 1) of 4 x 6 is at pixel (6, 6): eight pixels around it.
    owned = masks.argmax(0)
    assert owned[3:9, 3:9].all()
    outside = torch.ones(16, 24, dtype=torch.bool)
    outside[1:11, 1:11] = False
    assert not owned[outside].any()


def test_the_frame_sharpens_rough_shapes() -> None:
    decoder = make()
    decoder.draw = _Fixed(torch.full((2, 16), -1.0))  # type: ignore[assignment]
    decoder.colour = _Fixed(torch.tensor([[-3.0] * 3, [3.0] * 3]))  # type: ignore[assignment]
    frame = torch.full((1, 1, 3, 16, 24), 0.05)
    frame[..., 4:8, 5:8] = 0.65
    frame[..., 12:, 20:] = 0.65  # as bright, but out of the glimpse
    output = decoder(torch.zeros(1, 1, 2, 10), frame, attn=attention(7))
    expected = torch.zeros(16, 24)
    expected[4:8, 5:8] = 1.0
    torch.testing.assert_close(output.masks[0, 0, 1], expected, atol=0.01, rtol=0.0)


@pytest.mark.parametrize("is_density", [True, False])
def test_the_error_moves_the_attention_to_the_thing(is_density: bool) -> None:
    decoder = make()
    with torch.no_grad():
        decoder.draw.layers[-1].bias.fill_(4.0)
    # A dark ground and a bright slot.
    decoder.colour = _Fixed(torch.tensor([[-3.0] * 3, [3.0] * 3]))  # type: ignore[assignment]
    logits = torch.zeros(1, 1, 2, 24)
    logits[0, 0, 1, 7] = 18.0
    logits[0, 0, 0] += 9.0
    logits.requires_grad_()
    slots = torch.zeros(1, 1, 2, 10)
    frame = torch.zeros(1, 1, 3, 16, 24)
    frame[..., 2:10, 4:12] = 1.0  # two pixels to the right of what the slot sees
    if is_density:
        log_prob = decoder(slots, frame, attn=logits.softmax(2)).aux["log_prob"]
        (-log_prob).sum().backward()
    else:
        recon = decoder(slots, attn=logits.softmax(2)).recon
        (recon - frame).square().sum().backward()
    assert logits.grad is not None
    # More of the token on the right, less of the one on the left.
    assert logits.grad[0, 0, 1, 8] < 0 < logits.grad[0, 0, 1, 6]


class _Fixed(torch.nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        return self.value.expand(*slots.shape[:2], -1, -1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"glimpse_size must be in \[1, 16\] .* got 17"):
        make(glimpse_size=17)
    with pytest.raises(ValueError, match="deviation must be positive, got 0"):
        make(deviation=0)
    with pytest.raises(ValueError, match=r"max_shift of at least 0 .* got 0.0 and 0.5"):
        make(max_zoom=0.5)
    with pytest.raises(ValueError, match="expected the encoder's attention, got none"):
        make()(torch.randn(1, 1, 2, 10))
    with pytest.raises(ValueError, match="expected slot_dim above 3"):
        make(slot_dim=3, reads_places=True)
    with pytest.raises(ValueError, match="proportions of a frame of 16 x 24, got 25 tokens"):
        make()(torch.randn(1, 1, 2, 10), attn=torch.ones(1, 1, 2, 25))
