"""Seconds for scoring masks, beside scikit-learn on the same masks.

python tests/benchmarks/bench_metrics.py [--quick] [--json PATH]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from sklearn.metrics import adjusted_rand_score

from ocrl import metrics
from ocrl.average_precision import PredictedSets, average_precision
from ocrl.baselines import kmeans_segmentation


def make_masks(*shape, num_objects=12, num_slots=8):
    """Noisy rectangles with large ids, and a prediction that is right for 70 % of the pixels."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, num_objects, (*shape[:-2], 8, 8), generator=generator)
    grown = cells.repeat_interleave(shape[-2] // 8, -2).repeat_interleave(shape[-1] // 8, -1)
    truth = (grown * 997) % 60000
    is_right = torch.rand(shape, generator=generator) < 0.7
    other = torch.randint(0, num_slots, shape, generator=generator)
    return truth, torch.where(is_right, grown % num_slots, other)


def make_sets(num_frames, num_slots=10):
    """Predictions of CLEVR's form that are half right."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_frames, num_slots)
    classes = torch.randint(0, 2, (*shape, 4), generator=generator)
    places = 6 * torch.rand(*shape, 3, generator=generator)
    is_wrong = torch.rand(*shape, 4, generator=generator) < 0.15
    return PredictedSets(
        presence=torch.rand(shape, generator=generator),
        classes=torch.where(is_wrong, 1 - classes, classes),
        coordinates=places + 0.2 * torch.randn(*shape, 3, generator=generator),
        is_object=torch.rand(shape, generator=generator) < 0.65,
        true_classes=classes,
        true_coordinates=places,
    )


def by_sklearn(truth, found):
    for t, f in zip(truth.flatten(1).numpy(), found.flatten(1).numpy(), strict=True):
        adjusted_rand_score(t[t != 0], f[t != 0])


def best_of(functions, repeats):
    """Shortest time of each, taken in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    repeats = 2 if arguments.quick else 10
    truth, found = make_masks(64, 64, 64)
    clips, clip_masks = make_masks(8, 16, 64, 64)
    video = torch.rand(4, 16, 3, 64, 64)
    own, oracle = best_of(
        [
            lambda: metrics.ari(truth, found, foreground=True),
            lambda: by_sklearn(truth, found),
        ],
        repeats,
    )
    rows = [
        {"what": "FG-ARI, 64 images of 64 x 64", "ms": own * 1e3, "baseline": oracle * 1e3},
    ]
    sets = make_sets(500)
    others = {
        "AP, 500 images at 6 distances": lambda: average_precision(sets),
        "all metrics, 8 clips of 16 frames": lambda: metrics.discovery_metrics(clips, clip_masks),
        "SSIM, 64 frames": lambda: metrics.ssim(video, video.flip(-1)),
        "k-means, 4 clips of 16 frames": lambda: kmeans_segmentation(video, 8),
    }
    for what, function in others.items():
        rows.append({"what": what, "ms": best_of([function], repeats)[0] * 1e3})
    print(f"{'':<36} {'ms':>9} {'sklearn':>9} {'ratio':>7}")
    for row in rows:
        line = f"{row['what']:<36} {row['ms']:>9.2f}"
        if "baseline" in row:
            row["ratio"] = row["baseline"] / row["ms"]
            line += f" {row['baseline']:>9.2f} {row['ratio']:>6.1f}x"
        print(line)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
