import copy

import pytest
import torch
from torch import nn

from ocrl.backbones.cnn import CNN
from ocrl.backbones.trained import TrainedBackbone


def cnn(seed: int, out_dim: int = 6) -> CNN:
    torch.manual_seed(seed)
    return CNN([5], kernel_size=3, strides=[4], out_dim=out_dim, image_size=[8, 8], position="none")


def trained(
    seed: int = 0, *, is_frozen: bool = True, out_dim: int | None = None
) -> TrainedBackbone:
    return TrainedBackbone(cnn(seed), teacher="RUN", is_frozen=is_frozen, out_dim=out_dim)


class Model(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = backbone


FRAMES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_gives_the_tokens_of_the_teacher_and_keeps_a_copy() -> None:
    teacher, student = Model(cnn(1)), trained()
    expected = teacher.encoder.backbone(FRAMES).detach()
    assert not torch.allclose(student(FRAMES), expected)
    student.take_teacher(teacher, student=Model(student))
    torch.testing.assert_close(student(FRAMES), expected)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    torch.testing.assert_close(student(FRAMES), expected)


def test_a_teacher_that_learned_on_gives_what_it_wraps() -> None:
    middle, last = trained(1), trained(2)
    last.take_teacher(Model(middle), student=Model(last))
    torch.testing.assert_close(last(FRAMES), middle(FRAMES))


def test_a_frozen_one_does_not_learn_and_its_head_does() -> None:
    frozen = trained(out_dim=4).train()
    assert not frozen.backbone.training
    assert frozen.out_dim == 4 and frozen(FRAMES).shape == (2, 4, 4)
    frozen(FRAMES).sum().backward()
    assert all(parameter.grad is None for parameter in frozen.backbone.parameters())
    assert all(parameter.grad is not None for parameter in frozen.head.parameters())
    tuned = trained(is_frozen=False).train()
    before = copy.deepcopy(tuned.backbone.state_dict())
    tuned(FRAMES).square().sum().backward()
    assert tuned.backbone.training and before.keys() == tuned.backbone.state_dict().keys()
    assert all(parameter.grad is not None for parameter in tuned.parameters())


@pytest.mark.parametrize(
    "teacher", [Model(cnn(0, out_dim=5)), Model(nn.Identity()), nn.Linear(1, 1)]
)
def test_another_architecture_is_refused(teacher: nn.Module) -> None:
    student = trained()
    with pytest.raises(ValueError, match=r"has the backbone CNN .* at RUN: give both the same"):
        student.take_teacher(teacher, student=Model(student))
