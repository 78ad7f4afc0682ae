"""The world model: what it learns from, what it leaves out, and that it is saved whole."""

import runpy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import ocrl
from ocrl import checkpoint
from ocrl.distributed import join_world
from ocrl.matching import slot_distances
from ocrl.slot_world import describe_beyond
from ocrl.train import Run, Trainer
from ocrl.world_model import WorldModel

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL_WORLD = runpy.run_path(str(Path(__file__).with_name("small_world.py")))
B, T, K, D, SLOTS, SAVI, SMALL, WEIGHTS = (
    SMALL_WORLD[name] for name in ("B", "T", "K", "D", "SLOTS", "SAVI", "SMALL", "WEIGHTS")
)
slot_model, settings, make, draw = (
    SMALL_WORLD[name] for name in ("slot_model", "settings", "make", "draw")
)


def test_a_rollout_goes_on_from_what_it_said_itself_after_the_context():
    world, clip = make().eval(), draw()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    slots = world.encode(clip).slots
    prediction = world(clip).prediction.slots
    state, said, goes_on = world.dynamics.initial_state(B), [], torch.zeros(B, dtype=torch.bool)
    for t in range(T - 1):
        # Two frames of context are true, the rest is imagined.
        seen = slots[:, t] if t < 2 else said[-1]
        following, state = world.dynamics.step(seen, clip.action[:, t], state, goes_on)
        said.append(following)
    torch.testing.assert_close(prediction, torch.stack(said, dim=1), rtol=1e-4, atol=1e-4)
    expected = (prediction - slots[:, 1:]).square().mean()
    torch.testing.assert_close(world(clip).losses["slots"], expected)


def test_with_teacher_forcing_every_frame_is_foretold_from_true_ones():
    world, clip = make(rollout="none").eval(), draw()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    slots = world.encode(clip).slots
    expected = world.dynamics(slots[:, :-1], clip.action[:, :-1], clip.is_first[:, :-1])
    torch.testing.assert_close(world(clip).prediction.slots, expected)


@pytest.mark.parametrize("rollout", ["whole", "none"])
def test_each_loss_is_of_the_frame_that_was_foretold(rollout):
    world = make(num_decoded=9, rollout=rollout).eval()
    clip = draw()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    torch.nn.init.normal_(world.outcome.to_reward.weight)
    ends = clip.terminated.clone()
    ends[0, -1] = True
    clip = replace(clip, terminated=ends)
    output = world(clip)
    said = output.prediction.slots
    # All four steps of the rollout are decoded, the context is not.
    recon = world.model.decoder(said[:, 1:]).recon
    image = (recon - clip.to_float().video[:, 2:]).square().mean()
    torch.testing.assert_close(output.losses["image"], image)
    # Outcomes are read from true slots as far as the dynamics was given them: here for two frames.
    given = T - 1 if rollout == "none" else 2
    before = torch.cat([world.encode(clip).slots[:, :given], said[:, given - 1 : -1]], dim=1)
    outcome = world.outcome(before, clip.action[:, :-1], said)
    expected = world.outcome.losses(
        outcome, reward=clip.reward[:, 1:], terminated=clip.terminated[:, 1:]
    )
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss.mean())


def test_every_other_rollout_goes_on_from_any_frame_after_the_context():
    world, clip = make(rollout="mixed"), draw()
    whole = make(rollout="whole").eval()
    forced = make(rollout="none").eval()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    for each in (whole, forced):
        each.load_state_dict(world.state_dict())
    slots = world.encode(clip).slots
    true = forced(clip).prediction.slots
    found = []
    for _ in range(60):
        said = world(clip).prediction.slots
        # As with teacher forcing up to the first frame that is told from an imagined one.
        is_true = [torch.allclose(said[:, t], true[:, t], atol=1e-5) for t in range(T - 1)]
        given = is_true.index(False) if False in is_true else T - 1
        assert given >= 2
        read = slice(given - 1)
        _, state = world.dynamics.observe(
            slots[:, read],
            clip.action[:, read],
            world.dynamics.initial_state(B),
            clip.is_first[:, read],
        )
        rest = world.dynamics.imagine(
            slots[:, given - 1], state, clip.action[:, given - 1 : -1], T - given
        )
        torch.testing.assert_close(said[:, given - 1 :], rest.slots, rtol=1e-4, atol=1e-4)
        found.append(given)
    # The last rollout has one step, which is from a true frame as well.
    assert set(found) == set(range(2, T))
    # Half of them are whole, beside a quarter of the others.
    assert 0.4 < found.count(2) / 60 < 0.85
    world.eval()
    torch.testing.assert_close(world(clip).prediction.slots, whole(clip).prediction.slots)
    with pytest.raises(ValueError, match="expected rollout to be one of mixed, whole, none"):
        make(rollout="half")


def test_outcomes_teach_the_head_alone():
    world, clip = make(), draw()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.3)
    torch.nn.init.normal_(world.outcome.to_reward.weight)
    losses = world(clip).losses
    (losses["event"] + losses["reward"] + losses["continue"]).backward()
    assert not any(parameter.grad is not None for parameter in world.dynamics.parameters())
    assert world.outcome.embed_slots.weight.grad.abs().sum() > 0
    world.zero_grad()
    world(clip).losses["slots"].backward()
    assert any(parameter.grad is not None for parameter in world.dynamics.parameters())


def test_longer_clips_are_cut():
    world, clip = make(horizon=T - 3).eval(), draw()
    assert world(clip).prediction.slots.shape[1] == T - 2
    torch.testing.assert_close(world(clip).losses["slots"], world(clip[: T - 1]).losses["slots"])


def test_the_total_is_the_weighted_sum_and_a_weight_of_0_leaves_a_loss_out():
    weights = {"slots": 2.0, "image": 0.5, "reward": 3.0, "continue": 0.25, "model": 0.0}
    output = make(weights=weights)(draw())
    assert set(output.losses) == {"slots", "image", "event", "reward", "continue"}
    expected = sum(weights.get(name, 1.0) * loss for name, loss in output.losses.items())
    torch.testing.assert_close(output.total, expected)
    only = make(weights=dict.fromkeys(weights, 0.0) | {"slots": 1.0})
    assert set(only(draw()).losses) == {"slots"}
    assert not any(p.requires_grad for p in only.outcome.parameters())


def test_frames_of_the_next_episode_count_nowhere():
    world, clip = make().eval(), draw()
    world.num_decoded = world.horizon
    begins = clip.is_first.clone()
    begins[1, 3] = True
    cut = replace(clip, is_first=begins)
    strange = replace(cut, video=cut.video.clone(), reward=cut.reward.clone())
    strange.video[1, 4:] = 255 - strange.video[1, 4:]
    strange.reward[1, 3:] += 5
    for name, loss in world(cut).losses.items():
        torch.testing.assert_close(loss, world(strange).losses[name], msg=name)


def test_a_frozen_model_stays_as_it_is_and_a_tuned_one_learns():
    frozen = make().train()
    assert not frozen.model.training and frozen.dynamics.training
    frozen(draw()).total.backward()
    assert all(p.grad is None for p in frozen.model.parameters())
    assert all(p.grad is not None for p in frozen.dynamics.parameters())
    tuned = make(weights=WEIGHTS | {"model": 1.0}).train()
    output = tuned(draw())
    assert tuned.model.training and "model" in output.losses
    output.total.backward()
    assert all(p.grad is not None for p in tuned.model.encoder.parameters())


def test_slots_that_are_known_are_not_asked_for_again(monkeypatch):
    world, clip = make().eval(), draw()
    torch.manual_seed(0)
    expected = world(clip)
    known = replace(clip, slots=world.slots_of(clip))
    assert not known.slots.requires_grad and known.slots.shape == (B, T, K, D)
    monkeypatch.setattr(world.model.encoder, "forward", None)  # to ask is an error
    torch.manual_seed(0)
    found = world(known)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.prediction.slots, expected.prediction.slots)
    learning = make(weights=WEIGHTS | {"model": 1.0})
    with pytest.raises(ValueError, match="expected clips without slots for a slot model that"):
        learning(known)


def test_slots_of_frames_alone_are_put_in_order():
    options = (*SLOTS, "encoder=slot_attention", "decoder=broadcast", *SMALL)
    world = make(model=slot_model(*options))
    assert world.model.sees_single_frames and not make().model.sees_single_frames
    encoded = world.encode(draw())
    distance = slot_distances(encoded.slots[:, :-1], encoded.slots[:, 1:])
    straight = distance.diagonal(dim1=-2, dim2=-1).sum(-1)
    for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]):
        assert (straight <= distance[..., range(K), order].sum(-1) + 1e-5).all()
    raw = world.model.encode(draw())
    torch.testing.assert_close(encoded.slots.sum(2), raw.slots.sum(2))
    torch.testing.assert_close(encoded.attn.sum(2), raw.attn.sum(2))


@pytest.mark.parametrize("dynamics", ["transformer_categorical", "recurrent", "graph"])
def test_any_dynamics_learns_and_its_own_costs_join(dynamics):
    world = make(dynamics=dynamics)
    output = world(draw())
    own = {"divergence", "reconstruction"} if "categorical" in dynamics else set()
    assert set(output.losses) == {"slots", "image", "event", "reward", "continue"} | own
    assert output.total.isfinite()


def test_codes_of_the_encoder_are_taken_and_saved(tmp_path):
    codes = ("encoder.coordinates=none", "encoder.quantizer.sizes=[4,3]")
    options = (*SLOTS, "encoder=vq_sa", *codes, "decoder=broadcast", *SMALL)
    config = settings(model=slot_model(*options), dynamics="transformer_codes")
    torch.manual_seed(0)
    world = checkpoint.build(config)
    world.take_codes()
    slots = world.encode(draw())
    assert torch.equal(world.dynamics.latent.codes_of(slots.slots), slots.codes)
    checkpoint.save(tmp_path / "checkpoint", world, config=config, step=1, env="sprites")
    loaded = ocrl.load(tmp_path)
    assert torch.equal(loaded.dynamics.latent.codes_of(slots.slots), slots.codes)
    with pytest.raises(ValueError, match=r"slots are codes .* got SAVi"):
        make(dynamics="transformer_codes").take_codes()


def test_a_dream_has_rewards_and_ends_and_warns_beyond_the_horizon():
    world, clip = make().eval(), draw()
    slots = world.encode(clip).slots
    state = world.read(slots[:, :2], clip.action, clip.is_first[:, :2])
    dream = world.imagine(slots[:, 1], state, lambda s: s.sum((1, 2)).long() % 3, 4)
    assert dream.slots.shape == (B, 4, K, D) and dream.action.shape == (B, 4)
    assert dream.reward.shape == (B, 4)
    assert ((dream.goes_on > 0) & (dream.goes_on < 1)).all()
    # The first frame alone is a context, too.
    alone = world.read(slots[:, :1], clip.action, clip.is_first[:, :1])
    assert world.imagine(slots[:, 0], alone, clip.action[:, :1], 1).slots.shape == (B, 1, K, D)
    assert describe_beyond(world, 4) is None
    with pytest.warns(UserWarning, match="trained on rollouts of 4 steps, and is asked for 9"):
        world.imagine(slots[:, 1], state, torch.zeros(B, 9, dtype=torch.int64), 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.imagine(slots[:, 1], state, torch.zeros(B, 4, dtype=torch.int64), 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"slots": 1.0}}, r"weights of \['continue', 'image', 'model'"),
        ({"num_context": 0}, "at least 1, got 0, 4 and 2"),
    ],
)
def test_bad_arguments_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="dynamics of slot_dim 8 as the encoder's, got 9"):
        make("dynamics.slot_dim=9")
    features = (*SAVI[:-1], "decoder=mlp", "decoder.patch_size=4")
    model = slot_model(*features)
    with pytest.raises(ValueError, match="decoder of pixels that draws slots alone"):
        make(model=model)
    assert make(model=model, weights=WEIGHTS | {"image": 0.0})(draw()).total.isfinite()
    patches = slot_model(*SAVI[:-1], "decoder=palette", "decoder.patch_size=4")
    with pytest.raises(ValueError, match=r"got PaletteDecoder; set weights\.image=0"):
        make(model=patches)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": None}, "episodes with rewards .* weights.reward=0"),
        ({"terminated": None}, "episodes with terminations .* weights.continue=0"),
        ({"action": None}, "discrete actions .* below 3, got none"),
        ({"action": torch.zeros(B, T, 2)}, "discrete actions .* got float32 of shape"),
        ({"action": torch.full((B, T), 7)}, "below 3, got actions up to 7"),
    ],
)
def test_episodes_that_lack_something_are_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        make()(draw(**changes))


def test_short_clips_are_refused():
    with pytest.raises(ValueError, match="clips of 6 frames, num_context=2 and horizon=4, got 5"):
        make()(draw()[:5])


def test_the_trainer_trains_and_saves_it(tmp_path):
    config = settings()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        trainer = checkpoint.plain(compose("pretrain").trainer)
    trainer |= {"max_steps": 4, "warmup_steps": 1, "checkpoint_every": 2, "evaluate_every": 0}
    trainer.pop("_target_")

    torch.manual_seed(0)

    class Batches:
        def __init__(self, step):
            self.clips = (draw() for _ in range(step, 4))

        def __enter__(self):
            return self.clips

        def __exit__(self, *_):
            return None

    with join_world("cpu") as world:
        Trainer(**trainer).fit(
            checkpoint.build(config),
            optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-3),
            batches=Batches,
            run=Run(tmp_path, config),
            world=world,
        )
    world = ocrl.load(tmp_path)
    assert isinstance(world, WorldModel) and checkpoint.read_meta(tmp_path)["step"] == 4
    # A residual dynamics starts at zero, and a frozen model is the same for ever.
    assert world.dynamics.output.to_slots.weight.any()
    assert world(draw()).losses["slots"].isfinite()
