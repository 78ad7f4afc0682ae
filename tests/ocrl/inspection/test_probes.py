"""Probes against closed forms and scikit-learn; matching without masks finds a hidden order."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ocrl.inspection.object_slots import LabelledClip, ObjectSlots, gather
from ocrl.inspection.probes import (
    ProbeSettings,
    Standardizer,
    assign_by_position,
    factor_kinds,
    fit_network,
    fit_ridge,
    fit_softmax,
    match_by_position,
    probe,
    r_squared,
)

SETTINGS = ProbeSettings(penalty=1e-4, hidden_dim=32, num_steps=400, seed=0)


def test_ridge_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = torch.randn(50, 2, generator=generator) + 3
    weight, bias = fit_ridge(x, y, penalty=0.1)
    reference = Ridge(alpha=0.1 * 50).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(weight.T, reference.coef_, rtol=1e-9)
    np.testing.assert_allclose(bias, reference.intercept_, rtol=1e-9)


def test_ridge_golden_numbers():
    # Sum of squares 2 of x over 2 rows: slope = 1 * 2 / (1 + 1), the bias is the mean of y.
    weight, bias = fit_ridge(torch.tensor([[-1.0], [1.0]]), torch.tensor([[3.0], [7.0]]), penalty=1)
    assert weight.tolist() == [[1.0]] and bias.tolist() == [5.0]


def test_softmax_is_scikit_learns():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, generator=generator)
    classes = torch.randint(0, 3, (60,), generator=generator)
    weight, bias = fit_softmax(x, classes, num_classes=3, penalty=0.01)
    # scikit-learn minimises C * sum of losses + |W|^2 / 2.
    reference = LogisticRegression(C=1 / (2 * 0.01 * 60), tol=1e-8, max_iter=1000)
    reference.fit(x.double().numpy(), classes.numpy())
    ours = (x.double() @ weight + bias).softmax(1)
    np.testing.assert_allclose(ours, reference.predict_proba(x.double().numpy()), atol=1e-4)


def test_r_squared_golden_numbers():
    truth = torch.tensor([[0.0, 0, 5], [2, 0, 5], [4, 3, 5]])
    predicted = torch.tensor([[1.0, 1, 0], [2, 1, 0], [3, 1, 0]])
    # Column 1: 1 - 2/8; column 2: 1 - 6/6; column 3 does not vary.
    assert r_squared(predicted, truth) == pytest.approx((0.75 + 0.0) / 2)
    assert math.isnan(r_squared(predicted[:, 2:], truth[:, 2:]))


def test_the_perceptron_learns_what_no_line_tells_and_leaves_the_generator_alone():
    x = torch.rand(800, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    classes = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    network = fit_network(x, classes, out_dim=2, settings=SETTINGS)
    assert torch.equal(torch.rand(1), expected)
    assert (network(x).argmax(1) == classes).float().mean() > 0.9
    again = fit_network(x, classes, out_dim=2, settings=SETTINGS)
    assert torch.equal(network(x), again(x))


def test_kinds_are_read_off_values():
    generator = torch.Generator().manual_seed(0)
    factors = {
        "shape": torch.randint(0, 3, (40, 1), generator=generator).float(),
        "size": torch.rand(40, 1, generator=generator),
        "many": torch.arange(40.0)[:, None],
        "fixed": torch.ones(40, 1),
        "position": torch.randint(0, 2, (40, 2), generator=generator).float(),
    }
    kinds = factor_kinds(factors)
    assert kinds == {"shape": "class", "size": "number", "many": "number", "position": "number"}
    assert factor_kinds(factors, given={"shape": "number"})["shape"] == "number"
    with pytest.raises(ValueError, match="got 'shap'"):
        factor_kinds(factors, given={"shap": "class"})
    with pytest.raises(ValueError, match="of one column"):
        factor_kinds(factors, given={"position": "class"})


@pytest.mark.parametrize("change", [{"num_steps": 0}, {"hidden_dim": 0}, {"penalty": -1.0}])
def test_settings_that_fit_nothing_are_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} .*got {value}"):
        ProbeSettings(**{"penalty": 1.0, "hidden_dim": 4, "num_steps": 3, "seed": 0} | change)


def make_rows(num_rows, seed, *, num_missed=0):
    """Slots that say their object's place linearly and its colour by a direction."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(num_rows, 2, generator=generator)
    colour = torch.randint(0, 3, (num_rows,), generator=generator)
    noise = 0.01 * torch.randn(num_rows, 3, generator=generator)
    slots = torch.cat([place @ torch.tensor([[1.0, 2], [0, 1]]), torch.eye(3)[colour] + noise], 1)
    is_matched = torch.arange(num_rows) >= num_missed
    factors = {"place": place, "colour": colour[:, None].float()}
    return ObjectSlots(slots, is_matched, torch.ones(num_rows), factors, None)


def test_probes_read_what_is_there_and_the_constant_does_not():
    kinds = {"place": "number", "colour": "class"}
    train, test = make_rows(300, 0), make_rows(200, 1)
    scores = probe(train, test, kinds=kinds, settings=SETTINGS)
    assert scores["place"].linear > 0.999 and scores["place"].mlp > 0.95
    assert scores["colour"].linear == scores["colour"].mlp == 1.0
    assert scores["place"].constant <= 0.0 and scores["colour"].constant < 0.5
    shuffled = ObjectSlots(
        torch.randn(300, 5, generator=torch.Generator().manual_seed(3)),
        train.is_matched,
        train.overlap,
        train.factors,
        None,
    )
    blind = probe(shuffled, test, kinds=kinds, settings=SETTINGS)
    assert blind["place"].linear < 0.1 and blind["colour"].linear < 0.6


def test_missed_objects_get_the_constant():
    kinds = {"place": "number", "colour": "class"}
    train, test = make_rows(300, 0), make_rows(200, 1, num_missed=100)
    scores = probe(train, test, kinds=kinds, settings=SETTINGS)
    assert 0.4 < scores["place"].linear < 0.6
    own = probe(train, test.matched(), kinds=kinds, settings=SETTINGS)
    assert own["place"].linear > 0.999
    constant = scores["colour"].constant
    assert scores["colour"].linear == pytest.approx(0.5 + 0.5 * constant, abs=0.1)


def test_a_class_never_seen_counts_as_wrong():
    train, test = make_rows(100, 0), make_rows(100, 1)
    test.factors["colour"].fill_(9)
    (score,) = probe(train, test, kinds={"colour": "class"}, settings=SETTINGS).values()
    assert (score.constant, score.linear, score.mlp) == (0, 0, 0)


def test_standardizer_leaves_constants_at_zero():
    rows = torch.tensor([[1.0, 5], [3, 5]])
    assert Standardizer.of(rows)(rows).tolist() == [[-1, 0], [1, 0]]


def hidden_order(seed, num_slots=4, num_objects=3, num_frames=6):
    """A clip whose slots hold the objects in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(num_frames, num_objects, 2, generator=generator)
    order = torch.randperm(num_slots, generator=generator)[:num_objects]
    slots = torch.randn(num_frames, num_slots, 5, generator=generator)
    slots[:, order, :2] = 3 * place - 1
    seen = torch.ones(num_frames, num_objects, dtype=torch.bool)
    seen[0, 0] = False
    overlap = torch.zeros(num_frames, num_objects, num_slots)
    return LabelledClip(slots, overlap, seen, {"position": place}), order


def test_expectation_maximisation_finds_the_order():
    clips, orders = zip(*[hidden_order(seed) for seed in range(30)], strict=True)
    found = match_by_position(clips, penalty=1e-6)
    assert found.error < 1e-6
    for match, order in zip(found.matches, orders, strict=True):
        assert match[1:].tolist() == [order.tolist()] * 5
        assert match[0, 0] == -1 and match[0, 1] == order[1]
    held, order = hidden_order(99)
    (match,), error = assign_by_position([held], found.weight, found.bias)
    assert match[1].tolist() == order.tolist() and error < 1e-6
    rows = gather([held], [match])
    torch.testing.assert_close(rows.slots[:, :2], 3 * rows.factors["position"] - 1)


def test_the_cost_of_a_pair_is_its_squared_error():
    clip, _ = hidden_order(0)
    weight, bias = torch.randn(5, 2).double(), torch.randn(2).double()
    (match,), error = assign_by_position([clip], weight, bias)
    read = clip.slots.double() @ weight + bias
    frame, row = torch.nonzero(match >= 0, as_tuple=True)
    truth = clip.factors["position"].double()[frame, row]
    by_hand = (read[frame, match[frame, row]] - truth).square().sum(-1).mean()
    assert error == pytest.approx(float(by_hand))


def test_more_objects_than_slots_leaves_some_without():
    clip, _ = hidden_order(0, num_slots=2, num_objects=2)
    crowded = LabelledClip(
        clip.slots,
        torch.zeros(6, 3, 2),
        torch.ones(6, 3, dtype=torch.bool),
        {"position": torch.rand(6, 3, 2)},
    )
    found = match_by_position([crowded], penalty=1e-3)
    assert sorted(found.matches[0][0].tolist()) == [-1, 0, 1]
