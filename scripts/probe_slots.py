"""Measure what slots tell about the objects they hold, beside untrained slots.

python scripts/probe_slots.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
import torch
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.inspection.object_slots import split_reader
from ocrl.inspection.probe_report import compare_probes, summary, write_probes
from ocrl.inspection.probes import ProbeSettings


@script("probe")
def main(config: DictConfig) -> None:
    """Load, encode, probe, write."""
    settings = checkpoint.plain(config)
    data = settings["data"]
    for key, value in (("checkpoint", settings["checkpoint"]), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    console = Console(stderr=True)
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(settings["checkpoint"])
    models = {"trained": ocrl.load(settings["checkpoint"]).to(device)}
    for number in range(settings["num_random"]):
        torch.manual_seed(settings["seed"] + number)
        untrained = checkpoint.build(checkpoint.read_config(settings["checkpoint"]))
        models[f"random {number + 1}"] = untrained.to(device).eval()
    store = EpisodeStore(data.pop("path"))
    with console.status("encoding and probing"):
        result = compare_probes(
            models,
            split_reader(store, **data, image_size=models["trained"].encoder.backbone.image_size),
            attribute_names=store.metadata.get("attribute_names", []),
            matchings=settings["matchings"],
            settings=ProbeSettings(
                **{name: settings[name] for name in ("penalty", "hidden_dim", "num_steps", "seed")}
            ),
            kinds=settings["kinds"],
            mask_source=settings["mask_source"],
            device=device,
        )
    details = {
        "checkpoint": f"{settings['checkpoint']} (step {meta['step']:,})",
        "data": str(store.path),
    }
    written = write_probes(
        output_dir(), result, title=f"Probes of slots: {meta['env']}", details=details
    )
    for sentence in summary(result):
        console.print(sentence, soft_wrap=True)
    for path in written:
        console.print(f"{path.name:>12}: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
