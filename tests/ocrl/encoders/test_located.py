import math

import pytest
import torch
from torch import nn

from ocrl.agents.encoder_state import find_state
from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.encoders.located import LocatedSlots
from ocrl.initializers import GaussianInitializer, Initializer, LearnedInitializer
from ocrl.nn.location import cell_centres, follow, log_density, split_placed


def make(*, initializer: Initializer | None = None, **changes) -> LocatedSlots:
    torch.manual_seed(0)
    arguments = dict(
        num_slots=4,
        slot_dim=8,
        num_grounds=1,
        num_iterations_first=3,
        num_iterations_rest=2,
        num_prior_tokens=0.3,
        min_scale=0.05,
        mlp_dim=12,
        eps_placement="attn",
    )
    return LocatedSlots(
        CNN([8], kernel_size=3, strides=[2], out_dim=8, image_size=[16, 16], position="linear"),
        initializer=initializer or LearnedInitializer(4, slot_dim=8),
        **(arguments | changes),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_grounds": 0},
        {"num_grounds": 2, "mlp_dim": None},
        {"eps_placement": "sum"},
        {"glimpse_size": 6},
        {"has_places": True},
        {"has_places": True, "glimpse_size": 6},
        {"keeps_looks": False},
        {"keeps_looks": False, "num_iterations_rest": 3, "glimpse_size": 6},
    ],
)
def test_contract_of_the_variants(changes) -> None:
    check_slot_encoder(make(**changes))


@pytest.mark.parametrize("keeps_looks", [True, False])
def test_contract_with_noise(keeps_looks: bool) -> None:
    initializer = GaussianInitializer(4, slot_dim=8, is_learned=True)
    first, twin = (make(initializer=initializer, keeps_looks=keeps_looks) for _ in range(2))
    check_slot_encoder(first, twin=twin)


def test_two_rounds_written_out() -> None:
    encoder = make(num_iterations_first=2).double()
    nn.init.normal_(encoder.corrector.attention.to_q.weight)
    frame = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    tokens = encoder.backbone(frame)
    corrector, coordinates = encoder.corrector, cell_centres((8, 8)).double()
    attention = corrector.attention
    inputs = attention.norm_inputs(tokens)
    slots = encoder.initializer(tokens)
    places = torch.cat([torch.full((1, 2), 0.5).double(), encoder.places]).expand(2, -1, -1)
    log_scales = torch.cat([torch.zeros(1, 1).double(), encoder.log_scales]).expand(2, -1, -1)
    prior_scales = log_scales.exp()
    for _ in range(2):
        queries = attention.to_q(corrector.norm_slots(slots)) / 8**0.5
        logits = queries @ attention.to_k(inputs).mT
        logits[:, 1:] += log_density(places, log_scales, coordinates)[:, 1:] - math.log(3)
        attn = logits.softmax(dim=1)
        weights = attn + 1e-8
        update = weights / weights.sum(-1, keepdim=True) @ attention.to_v(inputs)
        slots = corrector.gru(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        assert corrector.mlp is not None
        slots = slots + corrector.mlp(slots)
        places, variances = follow(
            attn, coordinates, places=places, prior_scales=prior_scales, num_prior_tokens=0.3
        )
        log_scales = 0.5 * (variances + 0.05**2).log()
    output = encoder(frame[:, None], torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(output.attn[:, 0], attn)
    torch.testing.assert_close(output.slots[:, 0], slots)
    torch.testing.assert_close(output.aux["places"][:, 0], places)
    torch.testing.assert_close(output.aux["scales"][:, 0], log_scales.exp())


class _Brightness(nn.Module):
    """Tokens that say how bright a cell is and nothing of its place."""

    out_dim, image_size, grid = 2, (16, 16), (16, 16)

    def forward(self, frames, *, camera=None):
        light = frames.mean(dim=1).flatten(1)
        return torch.stack([light, 1 - light], dim=-1)


def test_slots_slide_to_two_things_of_one_look_and_follow_them() -> None:
    torch.manual_seed(0)
    encoder = LocatedSlots(
        _Brightness(),  # type: ignore[arg-type]
        initializer=LearnedInitializer(3, slot_dim=2),
        num_slots=3,
        slot_dim=2,
        num_grounds=1,
        num_iterations_first=8,
        num_iterations_rest=3,
        num_prior_tokens=0.3,
        min_scale=0.05,
        mlp_dim=None,
        eps_placement="attn",
    )
    attention = encoder.corrector.attention
    with torch.no_grad():
        _keep_the_state(encoder.corrector.gru)
        # The ground asks for dark tokens and the others for bright ones.
        encoder.initializer.slots.copy_(torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]))
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight.copy_(3 * torch.eye(2))
        encoder.places.copy_(torch.tensor([[0.4, 0.4], [0.6, 0.6]]))
    video = torch.zeros(1, 4, 3, 16, 16)
    for t in range(4):
        video[0, t, :, 2:5, 1 + t : 4 + t] = 1.0
        video[0, t, :, 11:14, 12 - t : 15 - t] = 1.0
    places = encoder(video, torch.zeros(1, 4, dtype=torch.bool)).aux["places"][0, :, 1:]
    for t in range(4):
        expected = torch.tensor([[3.5 / 16, (2.5 + t) / 16], [12.5 / 16, (13.5 - t) / 16]])
        torch.testing.assert_close(places[t], expected, atol=0.02, rtol=0.0)


def _keep_the_state(gru: nn.GRUCell) -> None:
    for parameter in gru.parameters():
        parameter.zero_()
    size = gru.hidden_size
    gru.bias_ih[size : 2 * size] = 50.0


def test_a_slot_is_given_what_stands_around_its_place() -> None:
    plain, close = make(), make(glimpse_size=6)
    close.backbone.backbone.load_state_dict(plain.backbone.state_dict())
    close.load_state_dict(plain.state_dict(), strict=False)
    frame = torch.rand(2, 1, 3, 16, 16)
    first, second = (encoder(frame, torch.ones(2, 1)) for encoder in (plain, close))
    assert torch.equal(first.attn, second.attn)
    more = second.slots - first.slots
    # The ground is nowhere.
    assert (more[:, :, 0] == 0).all() and (more[:, :, 1:].abs().amax(-1) > 1e-3).all()
    # Elsewhere in the grid nothing is read.
    tokens = torch.rand(1, 64, 8 + 3 * 4, requires_grad=True)
    state = close._start(torch.zeros(1, 4, 8))
    state["places"] = torch.tensor([[[0.5, 0.5], [0.19, 0.19], [0.8, 0.8], [0.5, 0.1]]])
    attn = torch.rand(1, 4, 64, requires_grad=True)
    close._closely(tokens, attn, state)[0, 1].sum().backward()
    # Around pixel (3, 3), in cells of two pixels.
    reached = tokens.grad[..., -12:].abs().sum(-1).view(8, 8) > 0
    assert reached[:3, :3].all() and not reached[4:].any() and not reached[:, 4:].any()
    assert not tokens.grad[..., :8].any()
    # Of the attention, its own and the same part.
    own = attn.grad.abs().view(4, 8, 8) > 0
    assert not own[[0, 2, 3]].any() and own[1, 1, 1] and not own[1, 4:].any()


@pytest.mark.parametrize("glimpse_size", [0, 6])
def test_slots_end_with_their_places(glimpse_size: int) -> None:
    plain = make(glimpse_size=glimpse_size)
    told = make(glimpse_size=glimpse_size, has_places=True, slot_dim=11)
    told.load_state_dict(plain.state_dict())
    assert (plain.num_axes, told.num_axes) == (0, 2)
    video, is_first = torch.rand(2, 3, 3, 16, 16), torch.eye(3)[0].expand(2, 3)
    first, second = plain(video, is_first), told(video, is_first)
    assert torch.equal(first.attn, second.attn)
    features, places, is_placed = split_placed(second.slots, num_axes=2)
    torch.testing.assert_close(features, first.slots)
    torch.testing.assert_close((places + 1) / 2, second.aux["places"])
    assert (is_placed[:, :, 0] == 0).all() and (is_placed[:, :, 1:] == 1).all()


def test_looks_that_are_not_kept_come_from_the_frame_and_the_last_places_alone() -> None:
    keeping, anew = (make(keeps_looks=keeps_looks) for keeps_looks in (True, False))
    nn.init.normal_(keeping.corrector.attention.to_q.weight)
    anew.load_state_dict(keeping.state_dict())
    tokens, is_first = torch.rand(2, 64, 8), torch.zeros(2, dtype=torch.bool)
    state = anew._start(torch.randn(2, 4, 8)) | {"is_fresh": is_first}
    state["queries"] = state["slots"]
    looks = {name: {**state, "slots": torch.randn(2, 4, 8)} for name in ("one", "other")}
    for encoder, is_same in ((keeping, False), (anew, True)):
        one, other = (encoder.bind(tokens, looks[name], is_first)[0] for name in ("one", "other"))
        assert torch.equal(one.slots, other.slots) == is_same
        # Places are kept.
        moved = {**state, "places": state["places"] + 0.2}
        elsewhere = encoder.bind(tokens, moved, is_first)[0]
        assert not torch.allclose(elsewhere.slots, encoder.bind(tokens, state, is_first)[0].slots)
    # As a first frame at those places, from the queries of the first frame.
    queries = torch.randn(2, 4, 8)
    slots = anew.bind(tokens, {**state, "queries": queries}, is_first)[0].slots
    expected, _ = keeping.bind(tokens, {**state, "slots": queries}, is_first)
    torch.testing.assert_close(slots, expected.slots)


@pytest.mark.parametrize("keeps_looks", [True, False])
def test_the_state_has_one_form_before_and_after_a_frame(keeps_looks: bool) -> None:
    encoder = make(keeps_looks=keeps_looks)
    state = encoder.initial_state(2)
    _, after = encoder.step(torch.rand(2, 3, 16, 16), state, torch.ones(2, dtype=torch.bool))
    # In one order, too: policies that tune an encoder lay its state out in a row.
    assert list(state) == list(after)
    for name, value in state.items():
        assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype)
    assert find_state(encoder, plain_key="frame") is not None


def test_grounds_own_half_of_any_picture_at_first() -> None:
    encoder = make(num_slots=9, initializer=LearnedInitializer(9, slot_dim=8))
    output = encoder(torch.rand(1, 1, 3, 16, 16), torch.ones(1, 1, dtype=torch.bool))
    share = output.attn[0, 0].mean(-1)
    assert 0.35 < share[0] < 0.65
    assert share[1:].max() < share[0] / 3


def test_bad_arguments_and_views_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_grounds must be in \[0, num_slots=4\), got 4"):
        make(num_grounds=4)
    with pytest.raises(ValueError, match="min_scale must be positive, got 0"):
        make(min_scale=0)
    with pytest.raises(ValueError, match="num_prior_tokens must be positive, got -1"):
        make(num_prior_tokens=-1)
    with pytest.raises(ValueError, match=r"glimpse_size must be in \[0, 16\] .* got 17"):
        make(glimpse_size=17)
    with pytest.raises(ValueError, match="the 64 tokens of one view, got 128"):
        make()(torch.rand(1, 2, 2, 3, 16, 16), torch.zeros(1, 2, dtype=torch.bool))
