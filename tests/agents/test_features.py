"""What policies read, with a vector beside what is seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Dict
from torch import nn

from ocrl.agents.features import Features, Whitening
from ocrl.nn.location import NUM_GEOMETRY, mask_geometry

CONFIGS = Path(__file__).parents[2] / "configs"

ROWS, SIZE, ASKED, PRODUCTS = 3, 4, 4, 5


def described(group, name):
    part = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    del part["_partial_"]
    return part


def features(match_dim, *, space=None, pooling="mean", plain_key="frame", **options):
    space = space or Dict({"slots": Box(-1, 1, (ROWS, SIZE)), "asked": Box(0, 1, (ASKED,))})
    return Features(
        space,
        plain_key=plain_key,
        pooling=described("pooling", pooling),
        vision=described("vision", "cnn"),
        match_dim=match_dim,
        **{"whitening": None, "hides_empty": False, "num_geometry": 0, **options},
        encoder=None,
    )


def picture():
    return Dict({"frame": Box(0, 255, (3, 16, 16), np.uint8), "asked": Box(0, 1, (ASKED,))})


def test_rows_carry_their_products_with_what_is_asked():
    network = features(PRODUCTS)
    slots, asked = torch.randn(2, ROWS, SIZE), torch.randn(2, ASKED)
    rows, is_present = network._set("slots", {"slots": slots, "asked": asked})
    product = network.products["slots"]
    expected = product.from_first(slots) * product.from_second(asked)[:, None]
    torch.testing.assert_close(rows[..., :SIZE], slots)
    torch.testing.assert_close(rows[..., SIZE : SIZE + ASKED], asked[:, None].expand(-1, ROWS, -1))
    torch.testing.assert_close(rows[..., SIZE + ASKED :], expected)
    assert is_present is None


@pytest.mark.parametrize("match_dim", [0, PRODUCTS])
def test_the_vector_of_a_picture_meets_what_is_asked(match_dim):
    network = features(match_dim, space=picture())
    seen = {"frame": torch.rand(2, 3, 16, 16), "asked": torch.rand(2, ASKED)}
    out = network(seen)
    vision = network.readers["frame"]
    assert out.shape == (2, network.features_dim) == (2, vision.out_dim + match_dim + ASKED)
    product = network.products["frame"](vision(seen["frame"]), seen["asked"]) if match_dim else None
    parts = [vision(seen["frame"]), *([] if product is None else [product])]
    named = dict(zip(network._parts, ([seen["asked"]], parts), strict=True))
    torch.testing.assert_close(out, torch.cat([p for part in named.values() for p in part], dim=-1))


@pytest.mark.parametrize("match_dim", [0, PRODUCTS])
def test_nothing_is_multiplied_where_nothing_is_asked(match_dim):
    network = features(match_dim, space=Box(-1, 1, (ROWS, SIZE)))
    assert not network.products and network.features_dim == network.readers["frame"].out_dim


def test_products_find_the_row_that_is_asked_for():
    """Which of many kinds is asked for is a product; the same layers without it learn slowly."""
    num_kinds = 16
    rows, asked = Box(-1, 1, (ROWS, num_kinds + 1)), Box(0, 1, (num_kinds,))

    def error(match_dim):
        torch.manual_seed(0)
        network = features(match_dim, space=Dict({"slots": rows, "asked": asked}))
        head = nn.Linear(network.features_dim, 1)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=3e-3)
        losses = []
        for _ in range(200):
            kinds = torch.eye(num_kinds)[torch.randint(num_kinds, (128, ROWS))]
            value = torch.randn(128, ROWS, 1)
            wanted = torch.eye(num_kinds)[torch.randint(num_kinds, (128,))]
            target = ((kinds * wanted[:, None]).sum(-1) * value[..., 0]).sum(-1)
            out = head(network({"slots": torch.cat([kinds, value], dim=-1), "asked": wanted}))
            loss = (out[:, 0] - target).square().mean() / target.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses[-50:]) / 50

    with_products, without = error(32), error(0)
    assert with_products < 0.6 * without


def test_whitened_features_vary_alike_but_where_they_hardly_vary():
    torch.manual_seed(0)
    mixed = torch.randn(4000, 4) * torch.tensor([5.0, 1.0, 0.5, 1e-3]) @ torch.randn(4, 4) + 3
    whitening = Whitening(4, ridge=0.01)
    torch.testing.assert_close(whitening(mixed), mixed)
    variances = torch.linalg.eigvalsh(mixed.T.cov(correction=0))
    whitening.measure(mixed)
    white = whitening(mixed)
    torch.testing.assert_close(white.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    expected = torch.diag(variances / (variances + 0.01 * variances.sum()))
    assert expected[0, 0] < 1e-3 and expected[-1, -1] > 0.98
    torch.testing.assert_close(white.T.cov(correction=0), expected, atol=1e-3, rtol=0)
    whitening.measure(torch.full((5, 4), 2.0))
    assert whitening(mixed).isfinite().all()


def placed_slots():
    """Six slots of which the last wins no cell, with geometry."""
    torch.manual_seed(0)
    masks = torch.rand(8, 6, 4, 4).softmax(dim=1)
    masks[:, 5] /= 4
    return torch.cat([torch.randn(8, 6, SIZE) * torch.arange(1, 5), mask_geometry(masks)], dim=-1)


def test_slots_that_win_nothing_are_not_read():
    slots = placed_slots()
    space = Box(-9, 9, slots.shape[1:])
    options = {"space": space, "pooling": "comparing_transformer", "num_geometry": NUM_GEOMETRY}
    other = slots.clone()
    other[:, 5, :SIZE] = 50.0
    for hides_empty in (True, False):
        network = features(0, **options, hides_empty=hides_empty, plain_key="slots")
        network.measure({"slots": slots})
        share = network.attention(slots)
        assert torch.equal(share[:, 5] == 0, torch.full((8,), hides_empty))
        assert torch.allclose(network(slots), network(other)) == hides_empty
        network.measure({"slots": other})
        is_moved = float(network.scales["slots"].shift[:SIZE].abs().max()) > 5
        assert is_moved != hides_empty
    # Nothing tells which are empty.
    network = features(0, space=space, hides_empty=True, plain_key="slots")
    assert network._set("slots", {"slots": slots})[1] is None


def test_slots_are_whitened_and_where_they_are_is_not():
    slots = placed_slots()
    network = features(
        0,
        space=Box(-9, 9, slots.shape[1:]),
        plain_key="slots",
        whitening=0.02,
        num_geometry=NUM_GEOMETRY,
    )
    network.measure({"slots": slots})
    rows, is_present = network._set("slots", {"slots": slots})
    plain = network.scales["slots"](slots)
    torch.testing.assert_close(rows[..., SIZE:], plain[..., SIZE:])
    white = network.whitenings["slots"](plain[..., :SIZE])
    torch.testing.assert_close(rows[..., :SIZE], white)
    spread = white.flatten(0, 1).T.cov(correction=0)
    assert is_present is None and (spread - torch.diag(spread.diag())).abs().max() < 1e-4
    # True objects are told apart as they are, and other sets are no slots.
    objects = features(0, space=Dict({"objects": Box(-1, 1, (ROWS, SIZE))}), whitening=0.02)
    assert not objects.whitenings
