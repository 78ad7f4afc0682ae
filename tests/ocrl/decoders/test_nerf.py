"""Fields composed along rays, against closed forms and against an ordinary NeRF."""

import math
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ocrl.decoders.nerf import NeRFDecoder


def make(**changes):
    arguments = dict(
        hidden_dim=16,
        num_octaves=3,
        first_octave=-3,
        near=1.0,
        far=5.0,
        num_intervals=8,
        num_finer=0,
        has_static=False,
        has_sky=False,
        has_shadow=False,
        initial_opacity=0.3,
        density_noise=0.0,
        noise_until=0.5,
        chunk_size=1000,
    )
    torch.manual_seed(0)
    return NeRFDecoder(10, **(arguments | changes)).eval()


def rays(*shape):
    directions = functional.normalize(torch.randn(*shape, 3), dim=-1)
    return torch.cat([torch.randn(*shape, 3), directions], dim=-1)


def along_x(heights):
    """Rays (1,1,1,P,6) from (-3, y, 0) along x."""
    target = torch.zeros(1, 1, 1, len(heights), 6)
    target[..., 0], target[..., 1], target[..., 3] = -3.0, torch.tensor(heights), 1.0
    return target


class Ball(nn.Module):
    """A field in place of a learned one: of density 2 per unit within 1 of the origin, one colour.

    The slots are its colours; a ball of a slot whose last number is not 0 is empty.
    """

    shadow = None

    def __init__(self, unit):
        super().__init__()
        self.of_slots = self.of_directions = nn.Identity()
        self.raw = math.log(math.expm1(2.0 * unit))

    def features(self, points, slots):
        inside = (points.square().sum(-1, keepdim=True) < 1.0) & (slots[..., -1:] == 0)
        return torch.cat([slots[..., :3].expand(*inside.shape[:-1], 3), inside.float()], dim=-1)

    def density(self, features):
        return torch.where(features[..., 3:] > 0, self.raw, -100.0)

    def colours(self, features, directions):
        return features[..., :3]


def with_balls(num_slots=1, **changes):
    decoder = make(num_intervals=2000, **changes)
    decoder.norm_slots = nn.Identity()
    decoder.field = Ball(4.0 / 2000)
    slots = torch.zeros(1, 1, num_slots, 4)
    slots[0, 0, :, :3] = torch.rand(num_slots, 3)
    return decoder, slots


def test_a_ball_lets_through_what_its_chord_leaves():
    decoder, slots = with_balls()
    heights = [0.0, 0.3, 0.7, 0.95, 1.5]
    output = decoder(slots, along_x(heights))
    chords = [2 * math.sqrt(max(0.0, 1 - y * y)) for y in heights]
    through = torch.tensor([math.exp(-2.0 * chord) for chord in chords])
    torch.testing.assert_close(output.aux["background"][0, 0, 0], through, atol=5e-3, rtol=0)
    expected = (1 - through) * slots[0, 0, 0, :3, None]
    torch.testing.assert_close(output.recon[0, 0, :, 0], expected, atol=5e-3, rtol=0)
    # An opaque ball is as far as its surface: 2 units, and what is not stopped counts as far.
    decoder.field.raw = 5.0
    depth = decoder(slots, along_x([0.0, 1.5])).aux["depth"][0, 0, 0]
    torch.testing.assert_close(depth, torch.tensor([2.0, 5.0]), atol=5e-3, rtol=0)


def test_densities_add_up_and_colours_mix_by_them():
    decoder, slots = with_balls(3)
    output = decoder(slots, along_x([0.0]))
    through = math.exp(-3 * 2.0 * 2.0)
    torch.testing.assert_close(output.aux["background"].item(), through, atol=1e-4, rtol=0)
    expected = (1 - through) * slots[0, 0, :, :3].mean(0)
    torch.testing.assert_close(output.recon[0, 0, :, 0, 0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(output.masks.flatten(), torch.full((3,), 1 / 3), atol=1e-4, rtol=0)
    slots[0, 0, 1, -1] = 1.0
    output = decoder(slots, along_x([0.0]))
    torch.testing.assert_close(
        output.masks.flatten(), torch.tensor([0.5, 0.0, 0.5]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(output.aux["background"].item(), math.exp(-8.0), atol=1e-4, rtol=0)


def test_one_slot_is_an_ordinary_nerf():
    decoder, slots, target = make(), torch.randn(1, 1, 1, 10), rays(1, 1, 1, 6)
    output = decoder(slots, target)
    field, mapped = decoder.field, decoder.field.of_slots(decoder.norm_slots(slots[0, 0]))
    code = field.of_directions(decoder.direction(target[0, 0, 0, :, 3:]))
    colour, light = torch.zeros(6, 3), torch.ones(6)
    # Front to back, as Mildenhall et al. write it.
    for index in range(8):
        points = target[0, 0, 0, :, :3] + (1.25 + 0.5 * index) * target[0, 0, 0, :, 3:]
        features = field.features(points, mapped)
        density = functional.softplus(field.density(features)).squeeze(-1)
        stopped = 1 - torch.exp(-density)
        colour = colour + (light * stopped)[:, None] * field.colours(features, code)
        light = light * (1 - stopped)
    torch.testing.assert_close(output.recon[0, 0, :, 0].T, colour)
    torch.testing.assert_close(output.aux["background"][0, 0, 0], light)
    torch.testing.assert_close(output.masks, torch.ones_like(output.masks))


def test_fields_fade_away_from_the_places_of_their_slots():
    decoder = make(reads_places=True, num_intervals=2000)
    assert decoder.num_axes == 3
    decoder.norm_slots, decoder.field = nn.Identity(), Ball(4.0 / 2000)
    nn.init.constant_(decoder.precision.log_width.bias, math.log(0.3))
    # A ball at the origin, red, whose slot stands .4 beside it; the blue ground is everywhere.
    features = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    places = torch.tensor([[0.0, 0.4, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    slots = torch.cat([features, places], dim=-1)[None, None]
    output = decoder(slots, along_x([0.0]))
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    unit = 4.0 / 2000
    raw = math.log(math.expm1(2.0 * unit)) - 0.5 * (x.square() + 0.4**2) / 0.3**2
    of_red = functional.softplus(raw) / unit
    passed = (-(of_red + 2.0) * 2 / 4000).cumsum(0).exp()
    red, blue = (passed * of_red).sum() * 2 / 4000, (passed * 2.0).sum() * 2 / 4000
    found = output.recon[0, 0, :, 0, 0].double()
    torch.testing.assert_close(found[[0, 2]], torch.stack([red, blue]), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        output.masks[0, 0, 0, 0, 0].double(), red / (red + blue), atol=2e-3, rtol=0
    )


FULL = {"has_static": True, "has_sky": True, "has_shadow": True, "num_finer": 5}


@pytest.mark.parametrize(
    "options", [{}, FULL, FULL | {"reads_places": True}], ids=["plain", "full", "placed"]
)
def test_slots_may_come_in_any_order(options):
    decoder, slots, target = make(**options), torch.randn(2, 2, 4, 10), rays(2, 2, 2, 3)
    order = torch.tensor([2, 0, 3, 1])
    left, right = decoder(slots, target), decoder(slots[:, :, order], target)
    torch.testing.assert_close(left.recon, right.recon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left.masks[:, :, order], right.masks, rtol=1e-4, atol=1e-5)


def test_shares_of_light_sum_to_one():
    decoder, slots, target = make(**FULL), torch.randn(2, 1, 4, 10), rays(2, 1, 2, 3)
    output = decoder(slots, target)
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 1, 2, 3))
    background = output.aux["background"]
    assert (background > 0).all() and (background < 1).all()
    assert (output.recon > 0).all() and (output.recon < 1).all()
    assert ((output.aux["depth"] > 1.0) & (output.aux["depth"] < 5.0)).all()


def test_the_static_field_takes_part_of_the_light_and_is_the_same_for_all_slots():
    decoder, target = make(has_static=True), rays(1, 1, 1, 5)
    nn.init.constant_(decoder.field.density.bias, -50.0)
    first = decoder(torch.randn(1, 1, 3, 10), target)
    other = decoder(torch.randn(1, 1, 3, 10), target)
    torch.testing.assert_close(first.recon, other.recon)
    torch.testing.assert_close(first.aux["background"], torch.ones(1, 1, 1, 5))
    assert first.recon.abs().max() > 0.01


def test_the_sky_shines_where_nothing_stands():
    decoder, slots, target = make(has_sky=True), torch.randn(1, 1, 2, 10), rays(1, 1, 1, 5)
    nn.init.constant_(decoder.field.density.bias, -50.0)
    sky = decoder.sky(decoder.direction(target[..., 3:])).sigmoid()
    torch.testing.assert_close(decoder(slots, target).recon.movedim(2, -1), sky)
    black = make()
    nn.init.constant_(black.field.density.bias, -50.0)
    torch.testing.assert_close(black(slots, target).recon, torch.zeros(1, 1, 3, 1, 5))


def test_shadows_darken_by_the_product_of_all_fields():
    decoder, slots, target = make(has_shadow=True), torch.randn(1, 1, 2, 10), rays(1, 1, 1, 5)
    nn.init.zeros_(decoder.field.shadow.weight)
    pictures = []
    for bias in (40.0, 0.0):
        nn.init.constant_(decoder.field.shadow.bias, bias)
        pictures.append(decoder(slots, target).recon)
    torch.testing.assert_close(pictures[1], pictures[0] / 4)


def test_opacity_of_a_field_that_knows_nothing():
    decoder = make(initial_opacity=0.4)
    nn.init.zeros_(decoder.field.density.weight)
    background = decoder(torch.randn(1, 1, 1, 10), rays(1, 1, 1, 4)).aux["background"]
    torch.testing.assert_close(background, torch.full_like(background, 0.6))


def test_closer_looks_find_a_thin_wall_that_even_intervals_blur():
    class Wall(Ball):
        def features(self, points, slots):
            inside = (points[..., :1] > 0.0) & (points[..., :1] < 0.45)
            return torch.cat([slots[..., :3].expand(*inside.shape[:-1], 3), inside.float()], -1)

    depths = {}
    for num_finer in (0, 200):
        decoder = make(num_finer=num_finer)
        decoder.norm_slots = nn.Identity()
        decoder.field = Wall(1.0)
        decoder.field.raw = 50.0
        depths[num_finer] = decoder(torch.ones(1, 1, 1, 4), along_x([0.0])).aux["depth"].item()
    assert abs(depths[200] - 3.0) < 0.05 < abs(depths[0] - 3.0)


def test_training_draws_points_and_noise_that_ends():
    decoder, slots, target = make(density_noise=3.0), torch.randn(1, 1, 2, 10), rays(1, 1, 1, 9)
    still = decoder(slots, target).recon
    assert torch.equal(still, decoder(slots, target).recon)
    decoder.train()
    spreads = []
    for progress in (0.0, 0.9):
        decoder.set_progress(progress)
        drawn = torch.stack([decoder(slots, target).aux["background"] for _ in range(20)])
        spreads.append(drawn.std(0).mean().item())
    assert spreads[0] > 3 * spreads[1] > 0


def gradients(decoder, slots, target):
    slots = slots.clone().requires_grad_()
    torch.manual_seed(1)
    output = decoder(slots, target)
    (output.recon.square().sum() + output.masks[:, :, 0].sum()).backward()
    made = [slots.grad, *(p.grad for p in decoder.parameters())]
    decoder.zero_grad()
    return output, made


def test_chunks_change_neither_pictures_nor_gradients():
    slots, target = torch.randn(2, 1, 3, 10), rays(2, 1, 3, 5)
    whole, parts = (make(**FULL, chunk_size=size) for size in (1000, 4))
    first, own = gradients(whole, slots, target)
    other, theirs = gradients(parts, slots, target)
    torch.testing.assert_close(first.recon, other.recon)
    torch.testing.assert_close(first.aux["depth"], other.aux["depth"])
    for left, right in zip(own, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_what_the_backward_pass_makes_again_is_what_was_drawn():
    # With noise: the same numbers must be drawn in the recomputation as in the forward pass.
    decoder = make(density_noise=2.0, num_finer=4).train()
    slots, target = torch.randn(1, 1, 2, 10), rays(1, 1, 1, 6)
    _, remade = gradients(decoder, slots, target)
    decoder._chunk = lambda *inputs: decoder._render(*inputs, decoder._edges(*inputs))
    _, kept = gradients(decoder, slots, target)
    for left, right in zip(remade, kept, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_the_backward_pass_does_not_look_again_where_to_look_closer(monkeypatch):
    decoder, looks = make(num_finer=4), []
    look = decoder.field.features
    monkeypatch.setattr(decoder.field, "features", lambda *at: looks.append(at) or look(*at))
    gradients(decoder, torch.randn(1, 1, 2, 10), rays(1, 1, 1, 6))
    assert [points.shape[3] for points, _ in looks] == [8, 12, 12]


class Held(TorchDispatchMode):
    """The most bytes that tensors made within it hold at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._hold(leaf.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _hold(self, storage):
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self.known:
            return
        self.known.add(place)
        self.now += size
        weakref.finalize(storage, self._let_go, place, size)

    def _let_go(self, place, size):
        self.known.discard(place)
        self.now -= size


def most_held(num_rays, chunk_size):
    decoder = make(hidden_dim=32, num_intervals=16, num_finer=8, has_static=True)
    decoder.chunk_size = chunk_size
    slots, target = torch.randn(1, 1, 3, 10, requires_grad=True), rays(1, 1, 1, num_rays)
    with Held() as held:
        decoder(slots, target).recon.square().sum().backward()
    return held.most


def test_memory_is_bounded_by_the_chunk_whatever_the_number_of_rays():
    few, many = most_held(32, 32), most_held(512, 32)
    assert most_held(512, 512) > 8 * few
    assert many < 1.3 * few


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"near": 5.0}, "0 <= near < far along the rays, got near=5.0 and far=5.0"),
        ({"num_intervals": 0}, "num_intervals and chunk_size of at least 1"),
        ({"num_finer": -1}, "num_finer of at least 0"),
        ({"initial_opacity": 1.0}, "initial_opacity between 0 and 1"),
        ({"density_noise": -1.0}, "density_noise of at least 0"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
def test_it_compiles():
    decoder, slots, target = make(**FULL), torch.randn(1, 2, 3, 10), rays(1, 2, 2, 8)
    compiled = torch.compile(decoder, backend="aot_eager")
    torch.testing.assert_close(compiled(slots, target).recon, decoder(slots, target).recon)
