"""Self-training against the logits' cross-entropy, and a teacher that stays outside."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ocrl.backbones.cnn import CNN
from ocrl.decoders.autoregressive import AutoregressiveDecoder
from ocrl.decoders.mlp import MLPDecoder
from ocrl.encoders.slot_attention import SlotAttention
from ocrl.initializers import LearnedInitializer
from ocrl.model import SlotModel
from ocrl.objectives.distillation import Distillation, matched_labels
from ocrl.objectives.features import FeatureReconstruction
from ocrl.types import Clip, SlotOutput


def cnn(*, size: int = 16, stride: int = 4) -> CNN:
    return CNN(
        channels=[4],
        kernel_size=3,
        strides=[stride],
        out_dim=6,
        image_size=[size, size],
        position="linear",
    )


def model(
    *, num_slots: int = 3, size: int = 16, stride: int = 4, decoder: str = "spot"
) -> SlotModel:
    encoder = SlotAttention(
        cnn(size=size, stride=stride),
        initializer=LearnedInitializer(num_slots, slot_dim=8),
        num_slots=num_slots,
        slot_dim=8,
        num_iterations=2,
        mlp_dim=None,
        gradient="bilevel",
        eps_placement="attn",
    )
    target = cnn(size=size, stride=stride)
    made: nn.Module = AutoregressiveDecoder(
        8,
        target=target,
        orders=range(9),
        has_position=False,
        dim=8,
        num_layers=1,
        num_heads=2,
        mlp_dim=8,
        dropout=0.5,
    )
    if decoder == "mlp":
        made = MLPDecoder(8, hidden_dims=[8], out_dim=6, image_size=[size, size], patch_size=stride)
    objective = FeatureReconstruction(None if decoder == "spot" else target, is_normalised=False)
    return SlotModel(
        encoder,
        decoder=made,  # type: ignore[arg-type]
        objectives={"features": objective},
        weights={"features": 1.0},
        is_conditioned=False,
    )


def taught(*, draws_order: bool = False, teacher: SlotModel | None = None) -> SlotModel:
    student = model()
    student.objectives["distillation"] = Distillation("a/run", draws_order=draws_order)
    student.weights["distillation"] = 0.005
    objective = student.objectives["distillation"]
    assert isinstance(objective, Distillation)
    objective.take_teacher(teacher or model(), student=student)
    return student


def clip(num_frames: int = 2) -> Clip:
    video = torch.rand(2, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return Clip(video, torch.zeros(2, num_frames, dtype=torch.bool))


def one_hot_maps(holders: list[int], num_slots: int) -> Tensor:
    return functional.one_hot(torch.tensor(holders), num_slots).mT.float()


def test_labels_by_hand() -> None:
    masks = one_hot_maps([0, 0, 0, 2, 2, 2], 3)  # nothing is in slot 1
    attn = one_hot_maps([1, 1, 2, 0, 0, 2], 3)
    # IoU of the teacher's 0 with the student's 1 and of 2 with 0: 2/3 each; 2 is left for 1.
    assert matched_labels(masks, attn).tolist() == [1, 1, 1, 0, 0, 0]


def test_labels_are_those_of_the_best_of_all_matchings() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, attn = (torch.rand(20, 4, 12, generator=generator) for _ in range(2))
    masks[::2, 1] = 0  # the published code gives such a slot the cost 1000
    labels = matched_labels(masks, attn)
    assert labels.shape == (20, 12)
    for sample in range(20):
        theirs, ours = masks[sample].argmax(0), attn[sample].argmax(0)
        iou = torch.zeros(4, 4, dtype=torch.float64)
        for i, j in itertools.product(range(4), range(4)):
            union = ((theirs == i) | (ours == j)).sum()
            iou[i, j] = ((theirs == i) & (ours == j)).sum() / union if union else 0.0
        cost = torch.where((theirs[:, None] == torch.arange(4)).any(0)[:, None], 1 - iou, 1e3)
        best = min(itertools.permutations(range(4)), key=lambda p: float(cost[range(4), p].sum()))
        expected = torch.tensor(best)[theirs]
        reached = sum(iou[i, j] for i, j in zip(theirs, labels[sample], strict=True))
        wanted = sum(iou[i, j] for i, j in zip(theirs, expected, strict=True))
        assert reached == pytest.approx(float(wanted))


def test_the_loss_and_its_gradient_are_those_of_the_raw_logits() -> None:
    student = taught()
    objective = student.objectives["distillation"]
    logits = torch.randn(2, 2, 3, 16, dtype=torch.float64, requires_grad=True)
    encoded = SlotOutput(torch.zeros(2, 2, 3, 8), logits.softmax(2))
    teacher = objective._teacher.module
    with torch.no_grad():
        theirs = teacher.encode(clip())
        masks = teacher.decoder(theirs.slots, clip().video, attn=theirs.attn).masks.flatten(-2)
    labels = matched_labels(masks, logits)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1))
    loss = objective(clip(), encoded, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    ours, reference = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gap", [60.0, 1000.0])
def test_extreme_logits_have_a_finite_loss_and_gradient(gap: float) -> None:
    student = taught()
    logits = torch.zeros(2, 1, 3, 16)
    logits[:, :, 0] = gap
    logits.requires_grad_()
    encoded = SlotOutput(torch.zeros(2, 1, 3, 8), logits.softmax(2))
    loss = student.objectives["distillation"](clip(1), encoded, None)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_the_teacher_is_outside_of_state_parameters_and_copies() -> None:
    teacher = model()
    student = taught(teacher=teacher)
    own = model()
    assert student.state_dict().keys() == own.state_dict().keys()
    assert len(list(student.parameters())) == len(list(own.parameters()))
    twin = copy.deepcopy(student)
    for each in (student, twin):
        assert each.objectives["distillation"]._teacher.module is teacher
    student.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student(clip()).total.backward()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    assert student.encoder.initializer.slots.grad.abs().sum() > 0


@pytest.mark.parametrize("draws_order", [True, False])
def test_the_teachers_decoder_draws_its_order_and_nothing_else(draws_order: bool) -> None:
    torch.manual_seed(0)
    teacher = model()
    nn.init.normal_(teacher.decoder.head.weight)
    student = taught(draws_order=draws_order, teacher=teacher)
    frames = clip()
    theirs = teacher.encode(frames)
    seen = set()
    for _ in range(40):
        masks = teacher.decoder(theirs.slots, frames.video).masks
        seen.add(tuple(masks.detach().flatten()[:8].mul(1e5).round().tolist()))
    # With dropout there would be forty.
    assert len(seen) == 1 if not draws_order else 5 < len(seen) <= 9
    assert student.objectives["distillation"].draws_order == draws_order


@pytest.mark.parametrize("decoder", ["spot", "mlp"])
def test_a_frozen_target_becomes_the_teachers(decoder: str) -> None:
    teacher, student = model(decoder=decoder), model(decoder=decoder)
    name = "decoder.target" if decoder == "spot" else "objectives.features.target"
    theirs, ours = (each.get_submodule(name).state_dict() for each in (teacher, student))
    assert not all(value.equal(theirs[key]) for key, value in ours.items())
    encoder = copy.deepcopy(student.encoder.state_dict())
    Distillation("a/run", draws_order=False).take_teacher(teacher, student=student)
    assert all(value.equal(theirs[key]) for key, value in ours.items())
    assert all(value.equal(encoder[key]) for key, value in student.encoder.state_dict().items())


def test_another_kind_of_target_stays() -> None:
    student = model()
    kept = copy.deepcopy(student.decoder.target.state_dict())
    teacher = model(decoder="mlp")
    Distillation("a/run", draws_order=False).take_teacher(teacher, student=student)
    assert all(value.equal(kept[key]) for key, value in student.decoder.target.state_dict().items())


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (model(num_slots=5), r"num_slots 3, got 5 at a/run"),
        (model(size=32), r"image_size \(16, 16\), got \(32, 32\) at a/run"),
        (model(stride=2), r"grid \(4, 4\), got \(8, 8\) at a/run"),
        (nn.Sequential(nn.Linear(2, 2)), r"an encoder and a decoder at a/run, got \['0'\]"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Distillation("a/run", draws_order=True).take_teacher(teacher, student=model())


def test_without_a_teacher_it_says_so() -> None:
    objective = Distillation(None, draws_order=True)
    with pytest.raises(ValueError, match="expected a teacher"):
        objective(clip(), SlotOutput(torch.zeros(2, 2, 3, 8), torch.ones(2, 2, 3, 16) / 3), None)


def test_compiled_is_the_same() -> None:
    objective = taught().objectives["distillation"].eval()
    attn = torch.rand(2, 2, 3, 16).softmax(2)
    encoded = SlotOutput(torch.zeros(2, 2, 3, 8), attn)
    expected = objective(clip(), encoded, None)
    compiled = torch.compile(objective, backend="eager")
    torch.testing.assert_close(compiled(clip(), encoded, None), expected)
