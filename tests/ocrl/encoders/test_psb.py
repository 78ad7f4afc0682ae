import math
import runpy
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from ocrl.backbones.scene import SceneBackbone
from ocrl.encoders.psb import PSB
from ocrl.initializers import GaussianInitializer, LearnedInitializer
from ocrl.interfaces import Backbone
from ocrl.nn.floor_places import FloorPlaces
from ocrl.nn.location import split_placed
from ocrl.nn.scan import GatedScan
from ocrl.nn.time_mixer import TimeAttention, TimeMixer
from ocrl.nn.triangulation import distances

WORLD = runpy.run_path(str(Path(__file__).parents[1] / "posed_world.py"))
textbook = runpy.run_path(str(Path(__file__).with_name("textbook_psb.py")))["encode"]

NUM_SLOTS, SLOT_DIM = 3, 16


class Patches(Backbone):
    """One linear map per 2 x 2 patch."""

    def __init__(self, side: int = 6, out_dim: int = 12) -> None:
        super().__init__()
        self.image_size, self.grid, self.out_dim = (side, side), (side // 2, side // 2), out_dim
        self.map = nn.Conv2d(3, out_dim, 2, stride=2)

    def forward(self, frames: Tensor, *, camera=None) -> Tensor:
        return self.map(frames).flatten(2).mT


def make_mixer(kind: str, window: int) -> TimeMixer:
    if kind == "scan":
        return GatedScan(SLOT_DIM, hidden_dim=24)
    return TimeAttention(
        SLOT_DIM, num_heads=2, window=window, max_distance=window, across_slots=kind == "joint"
    )


def make(
    mixer: str = "attention",
    *,
    window: int = 4,
    heads: int = 1,
    bias: str = "recency",
    num_slots: int = NUM_SLOTS,
    bottom_up_window: int | None = None,
    **options,
) -> PSB:
    torch.manual_seed(0)
    settings = {
        "backbone": Patches(),
        "initializer": LearnedInitializer(num_slots, slot_dim=SLOT_DIM),
        "time_mixer": make_mixer(mixer, window),
        "num_slots": num_slots,
        "slot_dim": SLOT_DIM,
        "num_blocks": 2,
        "bottom_up_heads": heads,
        "bottom_up_window": window if bottom_up_window is None else bottom_up_window,
        "bottom_up_bias": bias,
        "max_distance": window,
        "is_inverted": True,
        "object_heads": 2,
        "mlp_dim": 32,
        "residual_gain": None,
    }
    encoder = PSB(**(settings | options))
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            # Gain and bias away from 1 and 0, where a mistake in absorbing them would not show.
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return encoder.eval()


def make_clip(num_frames: int = 8, starts=((0, 5), (1, 2), (1, 3)), side: int = 6):
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(2, num_frames, 3, side, side, generator=generator)
    is_first = torch.zeros(2, num_frames, dtype=torch.bool)
    for sample, frame in starts:
        is_first[sample, frame] = True
    return video, is_first


def scan(encoder: PSB, video: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    state = encoder.initial_state(len(video))
    slots, attn = [], []
    for frame, first in zip(video.unbind(1), is_first.unbind(1), strict=True):
        output, state = encoder.step(frame, state, first)
        slots.append(output.slots)
        attn.append(output.attn)
    return torch.cat(slots, 1), torch.cat(attn, 1)


VARIANTS = {
    "default": {},
    "full past": {"window": 20},
    "window of one": {"window": 1, "bias": "none"},
    "present frame": {"bottom_up_window": 1, "bias": "none"},
    "narrow bottom-up": {"bottom_up_window": 2},
    "published": {"bias": "logits"},
    "heads, published bias": {"heads": 4, "bias": "logits"},
    "heads, present frame, bias": {"heads": 4, "bias": "logits", "bottom_up_window": 1},
    "heads, recency": {"heads": 2},
    "many heads, recency": {"heads": 4},
    "no bias": {"bias": "none"},
    "joint": {"mixer": "joint"},
    "plain cross-attention": {"is_inverted": False, "heads": 2},
    "slot ssm": {"mixer": "scan", "bottom_up_window": 1, "bias": "none"},
    "scan and past": {"mixer": "scan"},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


@variants
def test_equals_the_textbook_in_float64(options) -> None:
    encoder, (video, is_first) = make(**options).double(), make_clip()
    expected_slots, expected_attn = textbook(encoder, video.double(), is_first)
    output = encoder(video.double(), is_first)
    torch.testing.assert_close(output.slots, expected_slots, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(output.attn, expected_attn, atol=1e-9, rtol=1e-9)


@variants
def test_gradients_equal_the_textbook(options) -> None:
    encoder, (video, is_first) = make(**options).double(), make_clip()
    parameters = list(encoder.parameters())

    def gradients(slots: Tensor, attn: Tensor) -> list[Tensor]:
        return torch.autograd.grad(slots.square().sum() + attn.square().sum(), parameters)

    output = encoder(video.double(), is_first)
    expected = gradients(*textbook(encoder, video.double(), is_first))
    for (name, _), ours, theirs in zip(
        encoder.named_parameters(), gradients(output.slots, output.attn), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8, msg=lambda m, n=name: n + m)


@variants
def test_stream_equals_parallel(options) -> None:
    encoder, (video, is_first) = make(**options), make_clip(12)
    with torch.no_grad():
        slots, attn = scan(encoder, video, is_first)
        output = encoder(video, is_first)
    torch.testing.assert_close(slots, output.slots, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attn, output.attn, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.attn.sum(2), torch.ones_like(output.attn[:, :, 0]))


@variants
def test_past_is_untouched_by_future(options) -> None:
    encoder, (video, is_first) = make(**options), make_clip()
    changed = video.clone()
    changed[:, 4:] = 7.0
    with torch.no_grad():
        before, after = encoder(video, is_first), encoder(changed, is_first)
    assert torch.equal(before.slots[:, :4], after.slots[:, :4])
    assert not torch.allclose(before.slots[:, 4:], after.slots[:, 4:])


def test_memory_reaches_back_and_ends_with_the_episode() -> None:
    encoder, (video, _) = make(), make_clip()
    is_first = torch.zeros(2, 8, dtype=torch.bool)
    is_first[1, 3] = True
    changed = video.clone()
    changed[:, 2] = 0.0
    with torch.no_grad():
        before, after = encoder(video, is_first).slots, encoder(changed, is_first).slots
    assert (before[0, 3] - after[0, 3]).abs().max() > 1e-3
    assert torch.equal(before[1, 3:], after[1, 3:])


@pytest.mark.parametrize("mixer", ["attention", "joint", "scan"])
def test_episodes_of_a_clip_equal_separate_runs(mixer: str) -> None:
    encoder, (video, is_first) = make(mixer), make_clip(starts=((0, 5), (1, 5)))
    with torch.no_grad():
        whole = encoder(video, is_first).slots
        for part in (slice(0, 5), slice(5, 8)):
            alone = encoder(video[:, part], is_first[:, part]).slots
            torch.testing.assert_close(alone, whole[:, part], atol=1e-5, rtol=1e-5)


def test_permuted_queries_permute_slots() -> None:
    encoder, (video, is_first) = make(heads=2), make_clip()
    with torch.no_grad():
        before = encoder(video, is_first)
        encoder.initializer.slots.copy_(encoder.initializer.slots[[2, 0, 1]])
        after = encoder(video, is_first)
    torch.testing.assert_close(before.slots[:, :, [2, 0, 1]], after.slots)
    torch.testing.assert_close(before.attn[:, :, [2, 0, 1]], after.attn)


@pytest.mark.parametrize("num_frames", [1, 2])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_small_sizes(num_frames: int, num_slots: int) -> None:
    backbone = Patches(side=2)  # a single token
    encoder = make(window=1, bias="none", num_slots=num_slots, backbone=backbone)
    video, is_first = make_clip(num_frames, starts=(), side=2)
    output = encoder(video, is_first)
    assert output.slots.shape == (2, num_frames, num_slots, SLOT_DIM)
    assert output.attn.shape == (2, num_frames, num_slots, 1)
    assert output.slots.isfinite().all()


def bias_gradient(encoder: PSB) -> float:
    encoder(*make_clip()).slots.square().sum().backward()
    return float(encoder.blocks[0].bottom_up.time_bias.network[2].weight.grad.abs().max())


@pytest.mark.parametrize(
    ("heads", "bias", "acts"), [(1, "logits", False), (2, "logits", True), (1, "recency", True)]
)
def test_time_bias_acts_except_in_the_published_form(heads: int, bias: str, acts: bool) -> None:
    # With one head the published bias is the same for all slots and cancels in their softmax.
    gradient = bias_gradient(make(heads=heads, bias=bias))
    assert gradient > 1e-4 if acts else gradient < 1e-5


def test_recency_starts_on_the_present() -> None:
    encoder = make(window=8)
    video, is_first = make_clip(starts=())
    other = video.clone()
    distance = []
    for frame in range(8):
        other[:] = video
        other[:, frame] = 0.0
        with torch.no_grad():
            change = encoder(video, is_first).slots[:, 7] - encoder(other, is_first).slots[:, 7]
        distance.append(float(change.norm()))
    assert distance[7] > 2 * max(distance[:7])


def test_output_gain() -> None:
    encoder, plain = make(), make(residual_gain=1.0)
    gain = (4 * 2) ** -0.5
    for scaled, full in zip(encoder.blocks, plain.blocks, strict=True):
        for path in ("bottom_up.to_out", "object_attention.to_out", "time_mixer.attention.to_out"):
            ours, theirs = scaled.get_submodule(path).weight, full.get_submodule(path).weight
            torch.testing.assert_close(ours, theirs * gain)
            # Xavier-uniform: variance 2 / (fan in + fan out).
            assert abs(theirs.var().item() * SLOT_DIM - 1) < 0.3
        torch.testing.assert_close(scaled.mlp.layers[-1].weight, full.mlp.layers[-1].weight * gain)


def test_blocks_have_weights_of_their_own() -> None:
    first, second = make().blocks
    names = [name for name, value in first.named_parameters() if value.ndim == 2]
    assert any("time_mixer" in name for name in names)
    for name in names:
        assert not torch.equal(first.get_parameter(name), second.get_parameter(name)), name


def test_anomaly_detection_finds_nothing() -> None:
    encoder, (video, is_first) = make(heads=2), make_clip()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        encoder(video, is_first).slots.sum().backward()


@pytest.mark.parametrize("options", [{}, {"heads": 2}, VARIANTS["slot ssm"]])
def test_bfloat16_autocast_stays_close(options) -> None:
    encoder, (video, is_first) = make(**options), make_clip()
    exact = encoder(video, is_first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = encoder(video, is_first)
        streamed, _ = scan(encoder, video, is_first)
    assert output.slots.dtype == output.attn.dtype == torch.float32
    torch.testing.assert_close(output.slots, exact.slots, atol=0.2, rtol=0.1)
    torch.testing.assert_close(streamed, output.slots, atol=0.1, rtol=0.1)
    torch.testing.assert_close(output.attn.sum(2), torch.ones_like(output.attn[:, :, 0]))
    output.slots.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_random_queries_are_drawn_once_per_episode() -> None:
    gaussian = GaussianInitializer(NUM_SLOTS, slot_dim=SLOT_DIM, is_learned=True)
    encoder, (video, is_first) = make(initializer=gaussian).train(), make_clip()
    queries = encoder(video, is_first).queries
    assert queries is not None
    assert torch.equal(queries[0, 0], queries[0, 4]) and torch.equal(queries[0, 5], queries[0, 7])
    assert not torch.allclose(queries[0, 4], queries[0, 5])
    assert not torch.allclose(queries[0, 0], queries[1, 0])


def test_step_changes_no_state_and_keeps_its_size() -> None:
    encoder, (video, is_first) = make(), make_clip()
    state = encoder.initial_state(2)
    with torch.no_grad():
        for frame, first in zip(video.unbind(1), is_first.unbind(1), strict=True):
            copies = [state["tokens"].clone(), state["age"].clone(), state["blocks"][0].clone()]
            _, following = encoder.step(frame, state, first)
            for kept, copy in zip(
                (state["tokens"], state["age"], state["blocks"][0]), copies, strict=True
            ):
                assert torch.equal(kept, copy)
            assert following["tokens"].shape == state["tokens"].shape
            state = following
    assert state["age"].tolist() == [2, 4]
    assert state["tokens"].shape[1] == 3 and state["blocks"][0].shape[1] == 3


def test_present_frame_scope_caches_no_tokens() -> None:
    assert make(**VARIANTS["slot ssm"]).initial_state(5)["tokens"].numel() == 0


def test_backward_keeps_no_map_over_pairs_of_frames() -> None:
    encoder, (video, is_first) = make(window=40), make_clip(40)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(video, is_first)
    assert max(kept.values()) < 2 * 40 * 40 * NUM_SLOTS * 9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bottom_up_window": 0}, "window >= 1, got 0"),
        ({"window": 0, "bottom_up_window": 2}, "window >= 1, got 0"),
        ({"bottom_up_window": 1}, "'none' with a bottom-up window of 1"),
        ({"bias": "after"}, "got 'after'"),
        ({"heads": 3}, "divide 16, got 3"),
        ({"num_blocks": 0}, "at least 1 block, got 0"),
        ({"max_distance": 0}, "max_distance >= 1, got 0"),
    ],
)
def test_bad_arguments(options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_frames_of_another_number_of_tokens() -> None:
    encoder = make()
    first = torch.ones(2, dtype=torch.bool)
    _, state = encoder.step(torch.rand(2, 3, 6, 6), encoder.initial_state(2), first)
    with pytest.raises(ValueError, match="expected 9 tokens as in the frames before, got 16"):
        encoder.step(torch.rand(2, 3, 8, 8), state, ~first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", [{}, VARIANTS["slot ssm"]], ids=["psb", "slot_ssm"])
def test_compiles(options, backend: str) -> None:
    encoder, (video, is_first) = make(**options, num_blocks=1), make_clip(3, starts=((0, 1),))
    output = torch.compile(encoder, backend=backend)(video, is_first)
    exact = encoder(video, is_first)
    torch.testing.assert_close(output.slots, exact.slots, atol=1e-4, rtol=1e-4)
    parameters = list(encoder.parameters())
    expected = torch.autograd.grad(exact.slots.square().sum(), parameters)
    gradients = torch.autograd.grad(output.slots.square().sum(), parameters)
    torch.testing.assert_close(gradients, expected, atol=1e-3, rtol=1e-3)


def make_placed(**options) -> PSB:
    backbone = SceneBackbone(
        [8],
        strides=[2],
        kernel_size=3,
        num_residual=0,
        num_octaves=2,
        first_octave=-3,
        image_size=WORLD["SIZE"],
        out_dim=8,
        num_layers=0,
        num_heads=2,
        mlp_dim=8,
        has_rays=True,
    )
    places = FloorPlaces(
        4,
        num_grounds=1,
        center=[0.0, 0.0, 0.3],
        radius=1.5,
        num_prior_tokens=0.3,
        min_scale=0.1,
    )
    return make(num_slots=4, **({"backbone": backbone, "places": places, "heads": 2} | options))


@pytest.mark.parametrize("window", [1, 4])
def test_places_ride_on_tokens_as_if_they_were_added_to_the_logits(window: int) -> None:
    encoder = make_placed(bottom_up_window=window, bias="none", num_blocks=1).double()
    nn.init.normal_(encoder.blocks[0].bottom_up.to_q.weight)
    clip = WORLD["posed_clip"](num_frames=1).to_float()
    camera = clip.camera.map(lambda value: value.double())
    output = encoder(clip.video.double(), clip.is_first, camera=camera)

    tokens = encoder.backbone(clip.video[:, 0].double(), camera=camera)
    features, rays = tokens[..., :8], tokens[..., 8:]
    means = nn.functional.pad(encoder.places.places, (0, 1, 1, 0)) + encoder.places.center
    variances = nn.functional.pad(2 * encoder.places.log_scales, (0, 0, 1, 0)).exp()
    squares, _ = distances(means.expand(2, -1, -1), rays)
    density = math.log(1.5**2 / 2 / 3) - variances.log() - 0.5 * squares / variances
    density[:, 0] = 0.0
    block = encoder.blocks[0]
    queries = block.bottom_up.to_q(block.norm_slots(encoder.norm_init(output.queries[:, 0])))
    keys = block.bottom_up.to_k(
        block.bottom_up.norm_inputs.weight * nn.functional.layer_norm(features, (8,))
        + block.bottom_up.norm_inputs.bias
    )
    queries, keys = (rearrange(x, "b n (h d) -> b h n d", h=2) for x in (queries, keys))
    logits = queries @ keys.mT * queries.shape[-1] ** -0.5 + density[:, None]
    attn = logits.flatten(1, 2).softmax(1).view(logits.shape).sum(1)
    torch.testing.assert_close(output.attn[:, 0], attn, atol=1e-5, rtol=1e-4)

    features, places, is_placed = split_placed(output.slots[:, 0], num_axes=3)
    moved = encoder.places.move(
        attn @ nn.functional.pad(encoder.places.columns(rays), (1, 0), value=1.0)
    )
    torch.testing.assert_close(places[..., :2], moved.places, atol=1e-4, rtol=1e-4)
    assert (places[..., 2] - 0.3).abs().max() < 1e-6 and features.shape == (2, 4, SLOT_DIM - 4)
    assert is_placed[..., 0].tolist() == [[0, 1, 1, 1]] * 2


def test_placed_slots_stream_exactly_and_learn_where_to_start() -> None:
    encoder = make_placed(num_blocks=3)
    clip = WORLD["posed_clip"](num_frames=5).to_float()
    whole = encoder(clip.video, clip.is_first, camera=clip.camera)
    state, slots = encoder.initial_state(2), []
    for t in range(5):
        camera = clip.camera.map(lambda value, t=t: value[:, t : t + 1])
        output, state = encoder.step(clip.video[:, t], state, clip.is_first[:, t], camera=camera)
        slots.append(output.slots[:, 0])
    torch.testing.assert_close(torch.stack(slots, 1), whole.slots, atol=1e-4, rtol=1e-4)
    whole.slots.square().mean().backward()
    assert encoder.places.places.grad.abs().max() > 0
    assert encoder.places.log_scales.grad.abs().max() > 0


def test_slots_with_places_begin_by_where_things_are() -> None:
    encoder = make_placed(num_blocks=1)
    clip = WORLD["posed_clip"]().to_float()
    output = encoder(clip.video, clip.is_first, camera=clip.camera)
    with torch.no_grad():
        for parameter in encoder.initializer.parameters():
            parameter.normal_()
    other = encoder(clip.video, clip.is_first, camera=clip.camera)
    torch.testing.assert_close(output.attn, other.attn)


def test_slots_with_places_go_on_with_what_looks_like_what_they_won() -> None:
    encoder = make_placed(num_blocks=3)
    first, later = encoder.blocks[0].bottom_up, encoder.blocks[2].bottom_up
    tokens = torch.randn(5, 8)
    won = first.to_out(first.to_v(tokens))
    torch.testing.assert_close(later.to_q(won) @ later.to_k(tokens).mT, tokens @ tokens.mT)


@pytest.mark.parametrize("options", [{"backbone": Patches()}, {"is_inverted": False}])
def test_places_need_rays_and_a_competition(options) -> None:
    with pytest.raises(ValueError, match=r"tokens that end with their rays .* got is_inverted="):
        make_placed(**options)


def test_slots_too_small_for_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected slot_dim above 4, .* got 4"):
        make_placed(slot_dim=4, object_heads=2)
