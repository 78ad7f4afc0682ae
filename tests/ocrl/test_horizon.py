"""The horizon table: what stands in it, by hand."""

import itertools
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ocrl import metrics
from ocrl.horizon import HorizonMonitor, evaluate_horizons, set_distances
from ocrl.log import TensorBoard

SMALL_WORLD = runpy.run_path(str(Path(__file__).with_name("small_world.py")))
make, draw, T = SMALL_WORLD["make"], SMALL_WORLD["draw"], SMALL_WORLD["T"]
HORIZONS = (1, 3, 4)


def clips():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, (2, T, 16, 16), generator=generator)
    ends = torch.zeros(2, T, dtype=torch.bool)
    ends[0, -1] = True
    for _ in range(2):
        video = torch.rand(2, T, 3, 16, 16, generator=generator)
        yield replace(draw(), video=video, segmentation={"entities": ids}, terminated=ends)


def moving():
    """A world whose slots move."""
    world = make()
    torch.nn.init.normal_(world.dynamics.output.to_slots.weight, std=0.2)
    torch.nn.init.normal_(world.outcome.to_reward.weight)
    return world.eval()


def test_a_dynamics_that_changes_nothing_is_the_floor_and_the_encoder_the_ceiling():
    result = evaluate_horizons(make(), clips(), horizons=HORIZONS)
    table = result.table
    assert result.num_clips == 4 and result.horizons == HORIZONS and not result.warnings
    for metric in ("slot_error", "video_fg_ari", "video_mbo_i", "hits@1", "mrr"):
        assert table[metric]["prediction"] == pytest.approx(table[metric]["copy"], nan_ok=True)
    assert table["slot_error"]["encoder"] == pytest.approx([0, 0, 0], abs=1e-9)
    assert table["hits@1"]["encoder"] == table["mrr"]["encoder"] == [1, 1, 1]
    assert min(table["slot_error"]["copy"]) > 0


def test_every_figure_is_what_its_definition_says():
    world = moving()
    result = evaluate_horizons(world, clips(), horizons=HORIZONS)
    table = result.table
    errors, psnr, reward, copied, scores, ends, boundary = [], [], [], [], [], [], []
    with torch.no_grad():
        for clip in clips():
            slots = world.encode(clip).slots
            state = world.read(slots[:, :2], clip.action, clip.is_first)
            dream = world.imagine(slots[:, 1], state, clip.action[:, 1:-1], 4)
            for said, came in zip(dream.slots[:, 2], slots[:, 4], strict=True):
                orders = itertools.permutations(range(3))
                errors.append(min((said[list(o)] - came).square().mean().item() for o in orders))
            recon = world.model.decoder(dream.slots).recon.clamp(0, 1)
            psnr += metrics.psnr(recon[:, 2], clip.video[:, 4]).tolist()
            copied += metrics.psnr(clip.video[:, 1], clip.video[:, 4]).tolist()
            reward += (dream.reward[:, 2] - clip.reward[:, 4]).abs().tolist()
            scores += (1 - dream.goes_on[:, -1]).tolist()
            ends += clip.terminated[:, -1].tolist()
            ids = world.model.decoder(dream.slots).masks[:, :3].argmax(2)
            truth = clip.segmentation["entities"][:, 2:5]
            boundary += metrics.ari(truth, ids, foreground=True).tolist()

    def mean(values):
        return pytest.approx(sum(values) / len(values), rel=1e-4)

    assert table["slot_error"]["prediction"][1] == mean(errors)
    assert table["psnr"]["prediction"][1] == mean(psnr)
    assert table["psnr"]["copy"][1] == mean(copied)
    assert table["reward_error"]["prediction"][1] == mean(reward)
    assert table["video_fg_ari"]["prediction"][1] == mean(boundary)
    # Nothing terminates in the first step; in the last one the first clip of each batch does.
    assert math.isnan(table["termination_auc"]["prediction"][0])
    assert table["termination_auc"]["prediction"][2] == pytest.approx(area(scores, ends))
    assert set(table["ssim"]) == {"prediction", "copy", "encoder"}
    assert all(0 <= value <= 4 for value in table["perceptual"]["prediction"])
    shown = result.examples[0]
    assert shown.video.shape == shown.recon.shape == (4, 3, 16, 16)
    assert shown.ids.shape == (4, 16, 16) and len(result.examples) == 2


def test_what_is_pushed_is_scored_over_all_clips():
    world, sums = moving(), torch.zeros(2, len(HORIZONS), dtype=torch.float64)
    shown = []
    for clip in clips():
        ids = torch.zeros(2, T, 16, 16, dtype=torch.int64)
        for t in range(T):
            ids[:, t, 4:8, 4 + max(0, t - 1) : 8 + max(0, t - 1)] = 1
        shown.append(replace(clip, segmentation={"entities": ids}))
    table = evaluate_horizons(world, shown, horizons=HORIZONS).table["motion_from_rest"]
    with torch.no_grad():
        for clip in shown:
            slots = world.encode(clip).slots
            state = world.read(slots[:, :2], clip.action, clip.is_first)
            dream = world.imagine(slots[:, 1], state, clip.action[:, 1:-1], 4)
            said = torch.cat([slots[:, 1:2], dream.slots], dim=1)
            ids = world.model.decoder(said).masks.argmax(2)
            parts = metrics.motion_from_rest(
                clip.segmentation["entities"], ids, num_context=2, horizons=HORIZONS
            )
            sums += torch.stack(parts).sum(1)
    assert table["prediction"] == pytest.approx((1 - sums[0] / sums[1]).tolist())
    assert table["copy"] == [0, 0, 0]
    still = [replace(c, segmentation={"entities": torch.ones(2, T, 16, 16).long()}) for c in shown]
    table = evaluate_horizons(world, still, horizons=(1,)).table["motion_from_rest"]
    assert all(math.isnan(values[0]) for values in table.values())


def test_the_copy_is_drawn_once_and_what_came_is_judged_once(monkeypatch):
    world, numbers = moving(), {"drawn": 0, "judged": 0}
    decode, judge = world.model.decoder.forward, world.model.encoder.backbone

    def drawn(slots, *inputs, **options):
        numbers["drawn"] += slots.shape[:2].numel()
        return decode(slots, *inputs, **options)

    class Judge(torch.nn.Module):
        image_size = judge.image_size

        def forward(self, frames):
            numbers["judged"] += len(frames)
            return judge(frames)

    monkeypatch.setattr(world.model.decoder, "forward", drawn)
    evaluate_horizons(world, clips(), horizons=HORIZONS, judge=Judge())
    # Of 4 clips: 4 steps of the prediction and of the encoder, 3 horizons of them and of the truth.
    assert numbers == {"drawn": 4 * (4 + 4 + 1), "judged": 4 * (3 + 3 + 3 + 1)}


def test_clips_that_end_with_their_episodes_say_when_these_terminate():
    world, scores, ends = moving(), [], []

    def endings(length):
        for clip in clips():
            part = clip[T - length :]
            yield replace(part, is_first=torch.zeros_like(part.is_first))

    result = evaluate_horizons(world, clips(), horizons=(1, 2), ends=endings)
    with torch.no_grad():
        for clip in [*clips(), *endings(3)]:
            slots = world.encode(clip).slots
            state = world.read(slots[:, :2], clip.action, clip.is_first)
            dream = world.imagine(slots[:, 1], state, clip.action[:, 1:2], 1)
            scores += (1 - dream.goes_on[:, 0]).tolist()
            ends += clip.terminated[:, 2].tolist()
    assert sum(ends) == 2
    found = result.table["termination_auc"]
    assert found["prediction"][0] == pytest.approx(area(scores, ends))
    assert all(math.isfinite(value) for value in found["encoder"])


def area(scores, ends):
    """The share of pairs in which what terminates scores higher; ties count half."""
    pairs = [
        (score, other)
        for score, is_end in zip(scores, ends, strict=True)
        for other, other_end in zip(scores, ends, strict=True)
        if is_end and not other_end
    ]
    return sum((s > t) + 0.5 * (s == t) for s, t in pairs) / len(pairs)


def test_what_the_clips_lack_is_left_out():
    bare = [replace(clip, segmentation={}, reward=None) for clip in clips()]
    table = evaluate_horizons(moving(), bare, horizons=(1,)).table
    assert set(table) == {"slot_error", "psnr", "ssim", "perceptual", "hits@1", "hits@5", "mrr"}


def test_a_decoder_that_draws_no_imagined_slots_leaves_pictures_and_masks_out():
    options = (*SMALL_WORLD["SAVI"][:-1], "decoder=palette", "decoder.patch_size=4")
    model = SMALL_WORLD["slot_model"](*options)
    world = make(model=model, weights=SMALL_WORLD["WEIGHTS"] | {"image": 0.0})
    result = evaluate_horizons(world, clips(), horizons=(1, 2))
    assert not {"psnr", "video_fg_ari"} & set(result.table) and not result.examples
    assert {"slot_error", "hits@1", "reward_error"} <= set(result.table)
    assert "PaletteDecoder draws no slots that are imagined" in result.warnings[0]


def test_the_figures_are_logged_and_written(tmp_path):
    world = moving().train()
    monitor = HorizonMonitor(clips, horizons=(1, 2), preset="entities", device=torch.device("cpu"))
    with TensorBoard(tmp_path, start_step=0, is_silent=True) as board:
        figures = monitor(world, step=1, board=board)
        with pytest.raises(TypeError, match="WorldModel, got Linear"):
            monitor(torch.nn.Linear(1, 1), step=1, board=board)
    assert world.training and all(math.isfinite(value) for value in figures.values())
    assert {"slot_error/prediction/2", "psnr/copy/1", "mrr/encoder/1"} <= set(figures)
    record = evaluate_horizons(world, clips(), horizons=(1, 2)).to_json()
    assert record["table"]["termination_auc"]["prediction"] == [None, None]


def test_horizons_beyond_training_work_and_are_told():
    world = moving()
    world.horizon = 2
    result = evaluate_horizons(world, clips(), horizons=(1, 4))
    assert "trained on rollouts of 2 steps, and is asked for 4" in result.warnings[0]


def test_bad_input_is_refused_in_words():
    world = moving()
    for horizons in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="horizons that rise from 1 on"):
            evaluate_horizons(world, clips(), horizons=horizons)
    with pytest.raises(ValueError, match="2 frames of context and 9 steps, got 6 frames"):
        evaluate_horizons(world, clips(), horizons=(9,))
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_horizons(world, [], horizons=(1,))
    with pytest.raises(ValueError, match="discrete actions"):
        evaluate_horizons(world, [replace(draw(), action=None)], horizons=(1,))
    spoiled = replace(draw(), video=torch.full((2, T, 3, 16, 16), torch.nan))
    with pytest.raises(ValueError, match="finite slots"):
        evaluate_horizons(world, [spoiled], horizons=(1,))


def test_sets_are_compared_whatever_their_order():
    sets, others = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    found = set_distances(sets, others[:, torch.randperm(4)])
    for i, j in itertools.product(range(3), range(3)):
        orders = itertools.permutations(range(4))
        best = min((sets[i][list(o)] - others[j]).square().mean().item() for o in orders)
        assert found[i, j].item() == pytest.approx(best, rel=1e-5)
