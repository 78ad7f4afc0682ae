"""Measure which codes of slots say which factor of objects, and what changing a code does.

python scripts/measure_codes.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import output_dir, script

# isort: split
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.data.store import EpisodeStore
from ocrl.distributed import find_device
from ocrl.inspection.disentanglement_report import measure_codes, summary, write_code_report
from ocrl.inspection.object_slots import split_reader
from ocrl.inspection.probes import ProbeSettings


@script("disentangle")
def main(config: DictConfig) -> None:
    """Load, encode, count, edit, write."""
    settings = checkpoint.plain(config)
    data = settings["data"]
    for key, value in (("checkpoint", settings["checkpoint"]), ("data.path", data["path"])):
        if value is None:
            raise ValueError(f"expected {key}=PATH on the command line, got none")
    console = Console(stderr=True)
    device = find_device(settings["device"])
    meta = checkpoint.read_meta(settings["checkpoint"])
    model = ocrl.load(settings["checkpoint"]).to(device)
    store = EpisodeStore(data.pop("path"))
    with console.status("encoding, counting, editing"):
        report = measure_codes(
            model,
            split_reader(store, **data, image_size=model.encoder.backbone.image_size),
            attribute_names=store.metadata.get("attribute_names", []),
            settings=ProbeSettings(
                penalty=0.0,
                hidden_dim=settings["hidden_dim"],
                num_steps=settings["num_steps"],
                seed=settings["seed"],
            ),
            window=settings["window"],
            num_bins=settings["num_bins"],
            mask_source=settings["mask_source"],
            device=device,
        )
    details = {
        "checkpoint": f"{settings['checkpoint']} (step {meta['step']:,})",
        "data": str(store.path),
    }
    written = write_code_report(
        output_dir(), report, title=f"Codes and factors: {meta['env']}", details=details
    )
    for sentence in summary(report):
        console.print(sentence, soft_wrap=True)
    for path in written:
        console.print(f"{path.name:>12}: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
