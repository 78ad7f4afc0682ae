import pytest
import torch

from ocrl.properties import COORDINATES, FACTORS, PRESENCE, PropertySpec

RANGE = {"coordinates": ["position"], "low": [0, -1], "high": [1, 3], "scale": 4}


def test_the_parts_of_a_prediction_stand_in_one_order():
    spec = PropertySpec({"shape": ["cube", "ball", "cone"], "size": [0.2, 0.3]}, **RANGE)
    assert spec.num_coordinates == 2
    sizes = {COORDINATES: 2, f"{FACTORS}shape": 3, f"{FACTORS}size": 2, PRESENCE: 1}
    assert list(spec.sizes.items()) == list(sizes.items())
    outputs = torch.arange(16.0).view(2, 8)
    parts = spec.split(outputs)
    assert torch.equal(torch.cat(list(parts.values()), -1), outputs)
    assert parts[f"{FACTORS}size"].tolist() == [[5.0, 6.0], [13.0, 14.0]]
    assert not list(spec.parameters()) and not spec.state_dict()


@pytest.mark.parametrize(
    ("factors", "change", "words"),
    [
        ({"shape": ["cube"]}, {}, "at least two different classes of factor 'shape'"),
        ({"shape": ["cube", "cube"]}, {}, r"got \['cube', 'cube'\]"),
        ({}, {"low": [0, 3]}, "low below high"),
        ({}, {"low": [0]}, "low below high"),
        ({}, {"scale": 0}, "scale above 0, got 0"),
    ],
)
def test_what_can_not_be_is_said(factors, change, words):
    with pytest.raises(ValueError, match=words):
        PropertySpec(factors, **RANGE | change)
