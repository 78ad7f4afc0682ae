"""Measure what slots tell about the objects they hold, beside untrained slots.

python scripts/probe_slots.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("probe", globals(), goes_on=False)

# isort: split

import torch
from measuring import subject_of
from omegaconf import DictConfig

from ocrl import checkpoint
from ocrl.data.store import EpisodeStore
from ocrl.inspection.object_slots import split_reader
from ocrl.inspection.probe_report import compare_probes, summary, write_probes
from ocrl.inspection.probes import ProbeSettings


@command
def main(config: DictConfig) -> None:
    """Load, encode, probe, write."""
    subject = subject_of(config)
    settings, data = subject.settings, dict(subject.data)
    models = {"trained": subject.model}
    for number in range(settings["num_random"]):
        torch.manual_seed(settings["seed"] + number)
        untrained = checkpoint.build(checkpoint.read_config(settings["checkpoint"]))
        models[f"random {number + 1}"] = untrained.to(subject.device).eval()
    store = EpisodeStore(data.pop("path"))
    with subject.console.status("encoding and probing"):
        result = compare_probes(
            models,
            split_reader(store, **data, image_size=subject.image_size),
            attribute_names=store.metadata.get("attribute_names", []),
            matchings=settings["matchings"],
            settings=ProbeSettings(
                **{name: settings[name] for name in ("penalty", "hidden_dim", "num_steps", "seed")}
            ),
            kinds=settings["kinds"],
            mask_source=settings["mask_source"],
            device=subject.device,
        )
    written = write_probes(
        output_dir(), result, title=f"Probes of slots: {subject.env}", details=subject.details
    )
    subject.say(summary(result), written)


if __name__ == "__main__":
    main()
