"""Posed slots from nothing to a report, in one command, and measured again in another."""

import json

import pytest

SMALL = [
    "env=scenes_multiview",
    "env.size=32",
    "env.max_steps=6",
    "image_size=[32,32]",
    "slot_dim=16",
    "encoder.backbone.channels=[8,8]",
    "encoder.backbone.strides=[4,2]",
    "encoder.backbone.out_dim=16",
    "encoder.backbone.num_layers=1",
    "encoder.num_blocks=1",
    "objectives.reconstruction.num_rays=16",
    "collect.num_steps=24",
    "collect.num_workers=0",
    "data.batch_size=2",
    "data.clip_length=2",
    "evaluation.num_clips=1",
    "evaluation.clip_length=2",
    "evaluation.num_clips_in_training=1",
    "trainer.max_steps=2",
    "trainer.evaluate_every=1",
    "name=small",
]
NERF = [
    "decoder.hidden_dim=8",
    "decoder.num_intervals=4",
    "decoder.num_finer=2",
    "decoder.chunk_size=256",
]


@pytest.mark.parametrize(
    "experiment", ["psb3d_mixer", pytest.param("psb3d_nerf", marks=pytest.mark.slow)]
)
def test_train_and_measure(tmp_path, workplace, run_script, experiment):
    place = type(workplace)(tmp_path, run_script)
    options = [*SMALL, *(NERF if experiment == "psb3d_nerf" else [])]
    done = place.run("pretrain_slots", f"experiment={experiment}", *options)
    assert done.returncode == 0, done.stderr
    run = place.output("pretrain_slots", "small")
    record = json.loads((run / "metrics.json").read_text())
    assert {"fg_ari_both", "fg_ari_held_out"} <= set(record["segments"]["model"])
    assert set(record["pictures"]) == {"model", "mean colour", "nearest view"}
    assert bool(record["separation"]) == (experiment == "psb3d_nerf")
    assert (record["num_views"], record["num_seen"]) == (3, 2)
    spent = record["training"]
    assert spent["steps"] == 2 and spent["minutes"] > 0
    assert spent["rays_per_second"] == pytest.approx(16 * spent["frames_per_second"])
    assert {"report.html", "views.mp4", "orbit.mp4"} <= {path.name for path in run.iterdir()}
    measured = ["checkpoint=" + str(run), f"data.path={run / 'episodes'}", "data.clip_length=3"]
    measured += ["data.num_clips=1", "num_orbit=3", "num_examples=1", "name=again"]
    done = place.run("evaluate_views", *measured, "num_seen=1", "is_aligned=true")
    assert done.returncode == 0, done.stderr
    again = json.loads((place.output("evaluate_views", "again") / "metrics.json").read_text())
    assert again["num_seen"] == 1 and again["num_frames"] == 3
    assert "aligned" in again["details"]


def test_mistakes_are_one_sentence(workplace):
    run = f"checkpoint={workplace.folder / 'run'}"
    workplace.assert_mistake("evaluate_views", words="expected checkpoint=PATH on the command line")
    workplace.assert_mistake(
        "evaluate_views",
        run,
        f"data.path={workplace.folder / 'episodes'}",
        words="expected a model of posed views at",
    )
