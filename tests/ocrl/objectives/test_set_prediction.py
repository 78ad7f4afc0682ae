"""Both losses on cases worked by hand, against float64 references and at initialisation."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ocrl.decoders.properties import PropertyDecoder
from ocrl.objectives.set_prediction import SetPrediction, SetRegression
from ocrl.properties import PropertySpec
from ocrl.types import Clip, DecoderOutput, SlotOutput

SIZES = {"shape": 3, "color": 2}


def clip_with(targets):
    shape = targets["presence"].shape[:2]
    is_first = torch.zeros(shape, dtype=torch.bool)
    return Clip(torch.zeros(*shape, 3, 2, 2), is_first, properties=targets)


def decoded(parts):
    masks = torch.ones(*parts["presence"].shape[:2], 1, 1, 1)
    return DecoderOutput(parts["coordinates"], masks, aux=parts)


def value(objective, targets, parts):
    slots = torch.zeros(*parts["presence"].shape, 1)
    return objective(clip_with(targets), SlotOutput(slots, slots), decoded(parts))


def random_targets(num_rows, *, shape=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, num_rows + 1, shape, generator=generator)
    is_there = torch.arange(num_rows) < count[..., None]
    targets = {
        "presence": is_there,
        "coordinates": torch.rand(*shape, num_rows, 2, generator=generator) * is_there[..., None],
    }
    for name, size in SIZES.items():
        classes = torch.randint(0, size, (*shape, num_rows), generator=generator)
        targets[f"factors/{name}"] = classes * is_there
    return targets


def random_parts(num_slots, *, shape=(2, 3), seed=1, scale=2.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return scale * torch.randn(*shape, num_slots, *size, generator=generator)

    factors = {f"factors/{name}": draw(size) for name, size in SIZES.items()}
    return {"coordinates": draw(2).sigmoid(), "presence": draw(), **factors}


def likelihood_pair(target, part, *, coordinate_weight, presence_weight, delta):
    """The cost of one object and one slot, number by number in float64."""
    logit = float(part["presence"])
    probability = 1 / (1 + math.exp(-logit))
    if not target["presence"]:
        return -presence_weight * math.log(1 - probability)
    total = -presence_weight * math.log(probability)
    for name in SIZES:
        logits = part[f"factors/{name}"].double()
        total -= float(logits.log_softmax(-1)[target[f"factors/{name}"]])
    for wanted, given in zip(target["coordinates"], part["coordinates"], strict=True):
        error = abs(float(wanted) - float(given))
        huber = error**2 / (2 * delta) if error < delta else error - delta / 2
        total += coordinate_weight * huber
    return total


def regression_pair(target, part, *, coordinate_weight, activation):
    goal = [target["coordinates"], target["presence"].float()[None]]
    guess = [part["coordinates"], part["presence"].sigmoid()[None]]
    for name, size in SIZES.items():
        one_hot = F.one_hot(target[f"factors/{name}"], size) * target["presence"]
        goal.append(one_hot.float())
        logits = part[f"factors/{name}"]
        guess.append(logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1))
    errors = F.huber_loss(torch.cat(guess).double(), torch.cat(goal).double(), reduction="none")
    errors[:2] *= coordinate_weight
    return float(errors.mean())


def best_sum(pair, targets, parts, num_slots):
    """Mean over frames of the smallest sum over all permutations."""

    def row(values, place, index):
        if index >= values["presence"].shape[2]:
            return {name: torch.zeros_like(value[0, 0, 0]) for name, value in values.items()}
        return {name: value[place][index] for name, value in values.items()}

    sums = []
    for place in itertools.product(*map(range, parts["presence"].shape[:2])):
        sums.append(
            min(
                sum(pair(row(targets, place, i), row(parts, place, k)) for i, k in enumerate(order))
                for order in itertools.permutations(range(num_slots))
            )
        )
    return sum(sums) / len(sums)


@pytest.mark.parametrize("num_rows", [2, 3, 5])
def test_likelihood_is_the_best_of_all_permutations(num_rows):
    targets, parts = random_targets(min(num_rows, 3)), random_parts(3)
    if num_rows > 3:  # a table with more rows than slots, but not more objects
        targets = {
            name: F.pad(x, [0, 0] * (x.ndim - 3) + [0, num_rows - 3]) for name, x in targets.items()
        }
    settings = {"coordinate_weight": 2.5, "presence_weight": 0.7}
    expected = best_sum(
        lambda target, part: likelihood_pair(target, part, delta=0.1, **settings),
        targets,
        parts,
        3,
    )
    result = value(SetPrediction(huber_delta=0.1, **settings), targets, parts)
    assert float(result) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_regression_is_the_best_of_all_permutations(activation):
    targets, parts = random_targets(2), random_parts(3)
    settings = {"coordinate_weight": 4.0, "activation": activation}
    expected = best_sum(
        lambda target, part: regression_pair(target, part, **settings), targets, parts, 3
    )
    assert float(value(SetRegression(**settings), targets, parts)) == pytest.approx(
        expected, rel=1e-5
    )


def one_object(logit):
    """One cube at (0, 1) and two slots; the second knows it, up to the logit."""
    targets = {
        "presence": torch.tensor([[[True]]]),
        "coordinates": torch.tensor([[[[0.0, 1.0]]]]),
        "factors/shape": torch.tensor([[[1]]]),
    }
    parts = {
        "presence": torch.tensor([[[0.0, 0.0]]]),
        "coordinates": torch.tensor([[[[0.5, 0.5], [0.0, 0.5]]]]),
        "factors/shape": torch.tensor([[[[0.0, 0.0], [0.0, logit]]]]),
    }
    return targets, parts


def test_likelihood_by_hand():
    # The second slot: ln(1 + 1/3) of the class, |0.5| - 0.1 of the place, ln 2 of presence; the
    # first: ln 2 of absence.
    targets, parts = one_object(math.log(3))
    objective = SetPrediction(2.0, presence_weight=1.0, huber_delta=0.2)
    expected = math.log(4 / 3) + 2 * (0.5 - 0.1) + 2 * math.log(2)
    assert float(value(objective, targets, parts)) == pytest.approx(expected, rel=1e-6)


def test_regression_by_hand():
    # Five numbers. Second slot: place 0.5 off, classes 1/2 and 1/4 off, presence 1/2 off; first
    # slot against zeros: two places, two classes and presence 1/2 off each.
    targets, parts = one_object(math.log(3))
    second = (0.5**2 + 0.5**2 + 0.25**2 + 0.5**2) / 10
    first = 5 * 0.5**2 / 10
    result = value(SetRegression(1.0, activation="sigmoid"), targets, parts)
    assert float(result) == pytest.approx(first + second, rel=1e-6)


@torch.no_grad()
def fresh(slots, num_factors=(3, 2)):
    factors = {f"f{i}": list(range(size)) for i, size in enumerate(num_factors)}
    spec = PropertySpec(factors, coordinates=["position"], low=[0, 0], high=[1, 1], scale=1)
    decoder = PropertyDecoder(8, spec=spec, heads="shared", hidden_dims=[4], image_size=[8, 8])
    return decoder(slots).aux


def test_at_initialisation_both_have_their_closed_form():
    targets = random_targets(4)
    targets = {name.replace("shape", "f0").replace("color", "f1"): x for name, x in targets.items()}
    parts = fresh(torch.randn(2, 3, 5, 8))
    objects = float(targets["presence"].sum()) / 6
    off = (targets["coordinates"] - 0.5).abs() * targets["presence"][..., None]
    nats = objects * (math.log(3) + math.log(2)) + 5 * math.log(2)
    # Every error of a coordinate is beyond this delta, so that its Huber loss is linear.
    delta = 1e-4
    places = float((off - delta / 2 * (off > 0)).sum()) / 6
    result = value(SetPrediction(3.0, presence_weight=1.0, huber_delta=delta), targets, parts)
    assert float(result) == pytest.approx(nats + 3 * places, rel=1e-5)
    # Everything but the coordinates of objects is a half away from 0 or 1; 8 numbers a slot.
    halves = (5 * 8 - 2 * objects) * 0.25
    squares = halves + float(off.square().sum()) / 6
    result = value(SetRegression(1.0, activation="sigmoid"), targets, parts)
    assert float(result) == pytest.approx(squares / (2 * 8), rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        SetPrediction(2.0, presence_weight=1.0, huber_delta=0.05),
        SetRegression(1.0, activation="sigmoid"),
    ],
)
def test_it_is_a_set_learns_and_is_float32(objective):
    targets, parts = random_targets(3), random_parts(4)
    whole = value(objective, targets, parts)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: part[:, :, order] for name, part in parts.items()}
    torch.testing.assert_close(value(objective, targets, shuffled), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(value(objective, targets, parts), whole)
    leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
    value(objective, targets, leaves).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves.values())
    right = {
        name: 40 * F.one_hot(targets[name], SIZES[name[8:]]).float() - 20
        for name in targets
        if name.startswith("factors")
    }
    right |= {
        "coordinates": targets["coordinates"],
        "presence": 40 * targets["presence"].float() - 20,
    }
    if isinstance(objective, SetPrediction):
        assert value(objective, targets, right) < 1e-4
    with pytest.raises(ValueError, match="at most num_slots=1 objects in a frame, got 3; set"):
        value(objective, random_targets(3, shape=(4, 4)), random_parts(1, shape=(4, 4)))


def test_what_is_missing_is_said():
    objective = SetRegression(1.0, activation="sigmoid")
    targets, parts = random_targets(2), random_parts(2)
    short = {name: value for name, value in targets.items() if name != "factors/color"}
    with pytest.raises(ValueError, match=r"expected a clip with the properties .*'factors/color'"):
        value(objective, short, parts)
    output = DecoderOutput(torch.zeros(2, 3, 1), torch.ones(2, 3, 1, 1, 1))
    with pytest.raises(ValueError, match="decoder=properties"):
        objective(clip_with(targets), SlotOutput(torch.zeros(2, 3, 2, 1), torch.zeros(1)), output)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SetRegression(-1.0, activation="sigmoid"), "coordinate_weight of at least 0"),
        (lambda: SetRegression(1.0, activation="tanh"), "'sigmoid' or 'softmax', got 'tanh'"),
        (lambda: SetPrediction(1.0, presence_weight=-2, huber_delta=1), "presence_weight of at"),
        (lambda: SetPrediction(1.0, presence_weight=1, huber_delta=0), "huber_delta above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
