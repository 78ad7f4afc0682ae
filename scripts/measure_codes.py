"""Measure which codes of slots say which factor of objects, and what changing a code does.

python scripts/measure_codes.py checkpoint=outputs/pretrain_slots/NAME data.path=EPISODES
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, output_dir

command = Command("disentangle", globals(), goes_on=False)

# isort: split

from measuring import subject_of
from omegaconf import DictConfig

from ocrl.data.store import EpisodeStore
from ocrl.inspection.disentanglement_report import measure_codes, summary, write_code_report
from ocrl.inspection.object_slots import split_reader
from ocrl.inspection.probes import ProbeSettings


@command
def main(config: DictConfig) -> None:
    """Load, encode, count, edit, write."""
    subject = subject_of(config)
    settings, data = subject.settings, dict(subject.data)
    store = EpisodeStore(data.pop("path"))
    with subject.console.status("encoding, counting, editing"):
        report = measure_codes(
            subject.model,
            split_reader(store, **data, image_size=subject.image_size),
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
            device=subject.device,
        )
    written = write_code_report(
        output_dir(), report, title=f"Codes and factors: {subject.env}", details=subject.details
    )
    subject.say(summary(report), written)


if __name__ == "__main__":
    main()
