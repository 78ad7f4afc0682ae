import math

import pytest
import torch
from torch import nn

from ocrl.nn.octaves import OctaveEncoding, RayEncoding


def test_a_number_is_sines_and_cosines_of_doubling_frequencies():
    code = OctaveEncoding(3, first_octave=-1)(torch.tensor([[0.25]]))
    angles = [math.pi * 0.5 * 0.25, math.pi * 0.25, math.pi * 2 * 0.25]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(code, torch.tensor([expected]))


def test_numbers_are_coded_one_after_the_other():
    encoding = OctaveEncoding(4, first_octave=0)
    values = torch.randn(2, 5, 3)
    code = encoding(values)
    assert code.shape == (2, 5, 24) and encoding.dim_of_number == 8
    torch.testing.assert_close(code[..., 8:16], encoding(values[..., 1:2]))


def test_the_lowest_octave_says_when_a_position_repeats():
    encoding = OctaveEncoding(6, first_octave=-4)
    places = torch.tensor([[3.0], [3.0 + 2.0 ** (1 + 4)], [3.0 + 2.0**4]])
    code = encoding(places)
    torch.testing.assert_close(code[0], code[1], atol=1e-4, rtol=0)
    assert (code[0] - code[2]).abs().max() > 0.5


def test_origins_and_directions_have_octaves_of_their_own():
    encoding = RayEncoding(4, first_octave=-3)
    rays = torch.randn(7, 6)
    code = encoding(rays)
    assert code.shape == (7, encoding.out_dim) and encoding.out_dim == 48
    torch.testing.assert_close(code[:, :24], OctaveEncoding(4, first_octave=-3)(rays[:, :3]))
    torch.testing.assert_close(code[:, 24:], OctaveEncoding(4, first_octave=0)(rays[:, 3:]))


def test_rays_that_meet_on_the_plane_share_the_code_of_its_point():
    encoding = RayEncoding(4, first_octave=-3, plane=[0.5, 8.0])
    point = torch.tensor([0.3, -0.7, 0.5])
    origins = torch.tensor([[2.0, 1.0, 3.0], [-1.0, 0.5, 2.0]])
    directions = nn.functional.normalize(point - origins, dim=-1)
    code = encoding(torch.cat([origins, directions], dim=-1))
    assert code.shape == (2, encoding.out_dim) and encoding.out_dim == 64
    expected = OctaveEncoding(4, first_octave=-3)(point[:2])
    torch.testing.assert_close(code[:, 48:], expected.expand(2, -1), atol=1e-4, rtol=1e-4)
    plain = RayEncoding(4, first_octave=-3)(torch.cat([origins, directions], dim=-1))
    assert torch.equal(code[:, :48], plain)


def test_codes_stay_exact_under_autocast_and_out_of_checkpoints():
    encoding = RayEncoding(15, first_octave=-5)
    rays = torch.randn(3, 6) * 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = encoding(rays)
    assert code.dtype == torch.float32 and torch.equal(code, encoding(rays))
    assert not encoding.state_dict()


def test_no_octave_is_refused():
    with pytest.raises(ValueError, match="at least 1 octave, got 0"):
        OctaveEncoding(0, first_octave=0)
