import torch
from torch.nn import functional

from ocrl.nn.field import Field, ResidualMLP


def make(**changes):
    settings = dict(slot_dim=5, num_octaves=3, first_octave=-2, has_shadow=True, opacity=0.1)
    torch.manual_seed(0)
    return Field(8, **(settings | changes))


def test_before_anything_is_learned_a_unit_of_length_stops_the_given_share():
    field = make(opacity=0.2)
    assert torch.allclose(functional.softplus(field.density.bias), -torch.log1p(torch.tensor(-0.2)))


def test_slots_are_added_to_points_and_directions_to_features():
    field = make()
    points, slots = torch.randn(4, 1, 3), torch.randn(1, 6, 5)
    features = field.features(points, field.of_slots(slots))
    assert features.shape == (4, 6, 8)
    alone = field.features(points[:1], field.of_slots(slots[:, 2:3]))
    torch.testing.assert_close(features[:1, 2:3], alone)
    colours = field.colours(features, torch.randn(4, 1, 8))
    assert colours.shape == (4, 6, 3) and (colours > 0).all() and (colours < 1).all()
    assert (field.colours(features, torch.zeros(4, 1, 8)) - colours).abs().max() > 1e-3


def test_a_field_without_slots_is_a_function_of_the_point():
    field = make(slot_dim=None)
    assert field.of_slots is None
    points = torch.randn(4, 3)
    assert field.features(points, None).shape == (4, 8)


def test_shadows_start_as_almost_none():
    field = make()
    light = field.shadow(torch.zeros(1, 8)).sigmoid()
    assert 0.9 < light.item() < 1.0
    assert make(has_shadow=False).shadow is None


def test_a_residual_perceptron_without_blocks_is_a_norm():
    layer = ResidualMLP(6, num_blocks=0)
    values = torch.randn(3, 6)
    torch.testing.assert_close(layer(values), functional.layer_norm(values, (6,)))
