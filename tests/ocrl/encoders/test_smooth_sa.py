import pytest
import torch

from ocrl.backbones.cnn import CNN
from ocrl.check import check_slot_encoder
from ocrl.encoders.smooth_sa import SmoothSA
from ocrl.initializers import GaussianInitializer, LearnedInitializer, PreheatedInitializer
from ocrl.interfaces import Initializer
from ocrl.nn.predictor import (
    IdentityPredictor,
    Predictor,
    RandomPairPredictor,
    TransformerPredictor,
)


def make(
    *, predictor: Predictor | None = None, initializer: Initializer | None = None, window: int = 3
) -> SmoothSA:
    torch.manual_seed(0)
    return SmoothSA(
        CNN([8], kernel_size=3, strides=[2], out_dim=8, image_size=[8, 8], position="linear"),
        initializer=initializer
        or PreheatedInitializer(
            GaussianInitializer(3, slot_dim=6, is_learned=True),
            token_dim=8,
            slot_dim=6,
            num_heads=2,
            mlp_dim=12,
            detach_until=0.5,
        ),
        predictor=predictor
        or RandomPairPredictor(8, slot_dim=6, window=window, num_heads=2, mlp_dim=12, dropout=0.1),
        num_slots=3,
        slot_dim=6,
        num_iterations_first=3,
        num_iterations_rest=1,
        mlp_dim=12,
        gradient="bilevel",
        eps_placement="sum",
    )


def clip(num_frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    video = torch.rand(2, num_frames, 3, 8, 8, generator=generator)
    return video, torch.zeros(2, num_frames, dtype=torch.bool)


def test_contract_with_other_parts() -> None:
    transformer = TransformerPredictor(6, num_layers=1, num_heads=2, mlp_dim=12, norm_first=False)
    check_slot_encoder(make(), twin=make(), num_views=2)
    check_slot_encoder(make(predictor=transformer))
    check_slot_encoder(
        make(predictor=IdentityPredictor(), initializer=LearnedInitializer(3, slot_dim=6))
    )


def test_frames_by_hand() -> None:
    encoder = make().eval()
    video, is_first = clip(3)
    output = encoder(video, is_first)
    initializer = encoder.initializer
    assert isinstance(initializer, PreheatedInitializer)
    tokens = encoder.backbone(video[:, 0])
    queries, history = initializer.preheat(tokens), []
    torch.testing.assert_close(output.aux["preheat_queries"][:, 0], queries)
    for t in range(3):
        slots, attn = encoder.corrector(queries, tokens, num_iterations=3 if t == 0 else 1)
        torch.testing.assert_close(output.slots[:, t], slots)
        torch.testing.assert_close(output.attn[:, t], attn)
        history.append(slots)
        if t < 2:
            tokens = encoder.backbone(video[:, t + 1])
            queries = encoder.predictor([slots], [tokens], torch.ones(2, dtype=torch.int64))
    torch.testing.assert_close(output.aux["preheat_queries"][:, 1:], output.slots[:, 1:])


def test_no_gradient_crosses_a_frame() -> None:
    encoder = make().train()
    video, is_first = clip()
    video.requires_grad_()
    encoder(video, is_first).slots[:, 2].square().sum().backward()
    assert video.grad is not None
    reached = video.grad.abs().sum(dim=(0, 2, 3, 4)) > 0
    assert reached.tolist() == [False, False, True, False]


def test_reconstruction_does_not_train_the_preheater() -> None:
    encoder = make().train()
    video, is_first = clip()
    output = encoder(video, is_first)
    output.slots.square().sum().backward(retain_graph=True)
    reached = {n for n, p in encoder.initializer.named_parameters() if p.grad is not None}
    assert reached == {"log_std"}
    output.aux["preheat_queries"].square().sum().backward()
    assert all(p.grad is not None for p in encoder.initializer.parameters())


def test_history_grows_to_the_window_in_training_and_is_one_frame_in_eval() -> None:
    encoder = make(window=3).train()
    video, is_first = clip()
    lengths = []
    state = encoder.initial_state(2)
    for t in range(4):
        _, state = encoder.step(video[:, t], state, is_first[:, t])
        lengths.append((len(state["slots"]), len(state["tokens"])))
    assert lengths == [(2, 1), (3, 2), (3, 2), (3, 2)]
    encoder.eval()
    state = encoder.initial_state(2)
    for t in range(4):
        _, state = encoder.step(video[:, t], state, is_first[:, t])
        assert (len(state["slots"]), len(state["tokens"])) == (1, 0)
        assert state["age"].tolist() == [min(t + 1, 3)] * 2


def test_history_of_an_earlier_episode_is_never_read() -> None:
    encoder = make(window=3).train()
    video, is_first = clip(4)
    is_first[0, 2] = True
    ages = []
    forward = encoder.predictor.forward

    def watched(slots, tokens, age):  # type: ignore[no-untyped-def]
        ages.append(age.tolist())
        return forward(slots, tokens, age)

    encoder.predictor.forward = watched  # type: ignore[method-assign]
    encoder(video, is_first)
    assert ages == [[1, 1], [0, 2], [1, 3]]


def test_biases_start_at_zero() -> None:
    encoder = make()
    assert encoder.corrector.gru.bias_ih.abs().max() == 0
    assert all(
        p.abs().max() == 0 for n, p in encoder.predictor.named_parameters() if n.endswith("bias")
    )


@pytest.mark.slow
def test_compiled_without_graph_breaks_is_the_same() -> None:
    encoder = make().eval()
    video, is_first = clip(3)
    is_first[0, 1] = True
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video, is_first).slots, encoder(video, is_first).slots)
