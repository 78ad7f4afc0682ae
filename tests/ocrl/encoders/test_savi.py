import runpy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.encoders.savi import SAVi
from ocrl.initializers import BoxInitializer, GaussianInitializer, LearnedInitializer
from ocrl.interfaces import Initializer
from ocrl.nn.predictor import (
    IdentityPredictor,
    Predictor,
    RandomPairPredictor,
    TransformerPredictor,
)


def make(
    *,
    first: int = 2,
    rest: int = 1,
    gradient: str = "full",
    predictor: Predictor | None = None,
    initializer: Initializer | None = None,
    mlp_dim: int | None = None,
) -> SAVi:
    torch.manual_seed(0)
    return SAVi(
        CNN([8], kernel_size=3, strides=[2], out_dim=8, image_size=[8, 8], position="linear"),
        initializer=initializer or LearnedInitializer(3, slot_dim=8),
        predictor=predictor
        or TransformerPredictor(8, num_layers=1, num_heads=2, mlp_dim=16, norm_first=False),
        num_slots=3,
        slot_dim=8,
        num_iterations_first=first,
        num_iterations_rest=rest,
        mlp_dim=mlp_dim,
        gradient=gradient,  # type: ignore[arg-type]
        eps_placement="attn",
    )


def clip(num_frames: int = 4, batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    video = torch.rand(batch_size, num_frames, 3, 8, 8, generator=generator)
    return video, torch.zeros(batch_size, num_frames, dtype=torch.bool)


@pytest.mark.parametrize("gradient", ["full", "bilevel"])
@pytest.mark.parametrize("iterations", [(1, 1), (3, 1), (1, 2)])
def test_contract_of_the_variants(gradient: str, iterations: tuple[int, int]) -> None:
    first, rest = iterations
    check_slot_encoder(make(first=first, rest=rest, gradient=gradient, mlp_dim=12))


def test_contract_with_views_noise_and_boxes() -> None:
    check_slot_encoder(make(predictor=IdentityPredictor()), num_views=2)
    gaussian = GaussianInitializer(3, slot_dim=8, is_learned=True)
    check_slot_encoder(make(initializer=gaussian), twin=make(initializer=gaussian))
    boxes = BoxInitializer(3, slot_dim=8, hidden_dim=8, has_background=True, is_noisy=True)
    condition = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    check_slot_encoder(make(initializer=boxes), condition=condition)


def test_corrector_and_predictor_take_turns() -> None:
    encoder = make(first=3, rest=2)
    video, is_first = clip()
    output = encoder(video, is_first)
    queries = encoder.initializer(encoder.backbone(video[:, 0]))
    for t in range(4):
        tokens = encoder.backbone(video[:, t])
        slots, attn = encoder.corrector(queries, tokens, num_iterations=3 if t == 0 else 2)
        assert output.queries is not None
        torch.testing.assert_close(output.queries[:, t], queries)
        torch.testing.assert_close(output.slots[:, t], slots)
        torch.testing.assert_close(output.attn[:, t], attn)
        queries = encoder.predictor.blocks[0](slots)  # type: ignore[union-attr, operator]


def test_a_clip_from_the_middle_of_an_episode_starts_afresh() -> None:
    encoder = make().eval()
    video, is_first = clip()
    first = is_first.clone()
    first[:, 0] = True
    torch.testing.assert_close(encoder(video, is_first).slots, encoder(video, first).slots)
    # And so does a stream whose user never says that it started.
    output, _ = encoder.step(video[:, 0], encoder.initial_state(2), is_first[:, 0])
    torch.testing.assert_close(output.slots, encoder(video, first).slots[:, :1])


def test_the_gradient_runs_through_all_frames() -> None:
    encoder = make()
    video, is_first = clip()
    video.requires_grad_()
    encoder(video, is_first).slots[:, 3].square().sum().backward()
    assert video.grad is not None
    assert (video.grad.abs().sum(dim=(0, 2, 3, 4)) > 0).all()


def test_a_start_inside_a_clip_stops_the_gradient() -> None:
    encoder = make()
    video, is_first = clip()
    is_first[1, 2] = True
    video.requires_grad_()
    encoder(video, is_first).slots[:, 3].square().sum().backward()
    assert video.grad is not None
    reached = video.grad.abs().sum(dim=(2, 3, 4)) > 0
    assert reached.tolist() == [[True] * 4, [False, False, True, True]]


def test_ordinary_frames_compute_one_binding_only() -> None:
    encoder = make(first=3, rest=1)
    video, is_first = clip()
    counts = []

    def counted(queries, tokens, *, num_iterations):  # type: ignore[no-untyped-def]
        counts.append(num_iterations)
        return type(encoder.corrector).forward(
            encoder.corrector, queries, tokens, num_iterations=num_iterations
        )

    with patch.object(encoder.corrector, "forward", counted):
        encoder(video, is_first)
        assert counts == [3, 1, 1, 1]
        counts.clear()
        is_first[0, 1] = is_first[:, 2] = True
        encoder(video, is_first)
        assert counts == [3, 3, 1, 3, 1]


def test_compiled_without_graph_breaks_is_the_same() -> None:
    encoder = make(first=2, rest=1, mlp_dim=12)
    video, is_first = clip(2)
    is_first[0, 1] = True
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video, is_first).slots, encoder(video, is_first).slots)


def test_predictors_with_a_history_are_refused() -> None:
    predictor = RandomPairPredictor(8, slot_dim=8, window=3, num_heads=2, mlp_dim=8, dropout=0.0)
    with pytest.raises(ValueError, match="got window 3"):
        make(predictor=predictor)


@pytest.mark.parametrize("layout", ["frames first", "frame by frame"])
@pytest.mark.parametrize("mlp_dim", [None, 16])
def test_equals_the_textbook_forms_with_gradients(layout, mlp_dim):
    path = Path(__file__).with_name("textbook_savi.py")
    encoder = make(mlp_dim=mlp_dim).double()
    video = torch.rand(2, 4, 3, 8, 8, dtype=torch.float64)
    is_first = torch.zeros(2, 4, dtype=torch.bool)
    tokens = encoder.backbone(video.flatten(0, 1)).unflatten(0, (2, 4))
    slots = runpy.run_path(str(path))["encode"](encoder, tokens, layout=layout)
    ours = encoder(video, is_first).slots
    torch.testing.assert_close(ours, slots)
    weights = list(encoder.parameters())
    for got, expected in zip(
        torch.autograd.grad(ours.square().sum(), weights),
        torch.autograd.grad(slots.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
