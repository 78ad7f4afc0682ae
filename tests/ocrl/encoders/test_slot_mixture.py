import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.encoders.slot_mixture import SlotMixture, SlotMixtureVideo
from ocrl.initializers import BoxInitializer, GaussianInitializer
from ocrl.interfaces import Initializer
from ocrl.nn.predictor import (
    IdentityPredictor,
    Predictor,
    RandomPairPredictor,
    TransformerPredictor,
)

SIZES = {
    "num_slots": 3,
    "slot_dim": 8,
    "mlp_dim": 12,
    "head_dim": 12,
    "likelihood_power": 0.3,
    "gradient": "full",
}


def backbone() -> CNN:
    torch.manual_seed(0)
    return CNN([8], kernel_size=3, strides=[2], out_dim=8, image_size=[8, 8], position="linear")


def make_image() -> SlotMixture:
    start = GaussianInitializer(3, slot_dim=8, is_learned=True)
    return SlotMixture(backbone(), initializer=start, num_iterations=2, **SIZES)


def make_video(
    predictor: Predictor | None = None,
    initializer: Initializer | None = None,
    first: int = 3,
    rest: int = 1,
    **changes: object,
) -> SlotMixtureVideo:
    return SlotMixtureVideo(
        backbone(),
        initializer=initializer or GaussianInitializer(3, slot_dim=8, is_learned=True),
        predictor=predictor or IdentityPredictor(),
        num_iterations_first=first,
        num_iterations_rest=rest,
        **(SIZES | changes),
    )


def clip(num_frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    video = torch.rand(2, num_frames, 3, 8, 8, generator=generator)
    return video, torch.zeros(2, num_frames, dtype=torch.bool)


def test_contract_with_views() -> None:
    check_slot_encoder(make_image(), twin=make_image(), num_views=2)
    check_slot_encoder(make_video(), twin=make_video(), num_views=2)


@pytest.mark.parametrize("gradient", ["full", "bilevel"])
@pytest.mark.parametrize("counts", [(1, 1), (3, 2)])
def test_contract_of_the_variants(gradient: str, counts: tuple[int, int]) -> None:
    first, rest = counts
    check_slot_encoder(make_video(first=first, rest=rest, gradient=gradient, mlp_dim=None))
    predictor = TransformerPredictor(8, num_layers=1, num_heads=2, mlp_dim=16, norm_first=False)
    check_slot_encoder(make_video(predictor, first=first, rest=rest, gradient=gradient))


def test_contract_with_boxes() -> None:
    boxes = BoxInitializer(3, slot_dim=8, hidden_dim=8, has_background=True, is_noisy=False)
    condition = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    check_slot_encoder(make_video(initializer=boxes), condition=condition)


def test_frames_are_independent_images() -> None:
    encoder = make_image().eval()
    video, is_first = clip()
    output = encoder(video, is_first)
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(encoder(video[:, order], is_first).slots, output.slots[:, order])
    weights = output.aux["mixture_weights"]
    torch.testing.assert_close(weights, output.attn.mean(-1), atol=1e-5, rtol=1e-3)


def test_the_last_mixture_is_where_the_next_frame_starts() -> None:
    encoder = make_video(first=3, rest=2).eval()
    video, is_first = clip()
    output = encoder(video, is_first)
    corrector = encoder.corrector
    tokens = encoder.backbone(video.flatten(0, 1)).unflatten(0, (2, 4))
    components = corrector.start(encoder.initializer(tokens[:, 0]))
    for t in range(4):
        assert output.queries is not None
        torch.testing.assert_close(output.queries[:, t], corrector.unpack(components)[0])
        components, attn = corrector(components, tokens[:, t], num_iterations=3 if t == 0 else 2)
        torch.testing.assert_close(output.slots[:, t], corrector.slots(components))
        torch.testing.assert_close(output.attn[:, t], attn)


def test_a_predictor_moves_the_means_only() -> None:
    predictor = TransformerPredictor(8, num_layers=1, num_heads=2, mlp_dim=16, norm_first=False)
    encoder = make_video(predictor).eval()
    video, is_first = clip(2)
    started = []
    encoder.corrector.register_forward_pre_hook(lambda module, inputs: started.append(inputs[0]))
    encoder(video, is_first)
    _, state = encoder.step(video[:, 0], encoder.initial_state(2), ~is_first[:, 0])
    assert torch.equal(started[1][..., 8:], state["components"][..., 8:])
    moved = predictor([state["components"][..., :8]], [], torch.ones(2))
    torch.testing.assert_close(started[1][..., :8], moved)


def test_the_gradient_runs_through_all_frames_up_to_a_start() -> None:
    encoder = make_video()
    video, is_first = clip()
    is_first[1, 2] = True
    video.requires_grad_()
    encoder(video, is_first).slots[:, 3].square().sum().backward()
    assert video.grad is not None
    reached = video.grad.abs().sum(dim=(2, 3, 4)) > 0
    assert reached.tolist() == [[True] * 4, [False, False, True, True]]


def test_compiled_without_graph_breaks_is_the_same() -> None:
    encoder = make_video(first=2, rest=1)
    encoder.eval()
    video, is_first = clip(2)
    is_first[0, 1] = True
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video, is_first).slots, encoder(video, is_first).slots)


def test_predictors_with_a_history_are_refused() -> None:
    predictor = RandomPairPredictor(8, slot_dim=8, window=3, num_heads=2, mlp_dim=8, dropout=0.0)
    with pytest.raises(ValueError, match="got window 3"):
        make_video(predictor)
