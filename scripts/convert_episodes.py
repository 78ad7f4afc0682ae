"""Pack, unpack, verify, import and export episodes.

python scripts/convert_episodes.py verify outputs/collect_rollouts/crafter/episodes
python scripts/convert_episodes.py pack STORE episodes.ocrl
python scripts/convert_episodes.py unpack episodes.ocrl STORE
python scripts/convert_episodes.py import DAVIS_OR_PICTURES_OR_VIDEO STORE --image-size 64 64
python scripts/convert_episodes.py import-clevr CLEVR STORE --split val --image-size 128 128
python scripts/convert_episodes.py import-posed SCENES STORE --layout clevr3d --image-size 64 64
python scripts/convert_episodes.py import-minari DATASET_ID STORE
python scripts/convert_episodes.py export-minari STORE DATASET_ID
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ocrl.data.archive import pack, unpack
from ocrl.data.clevr import import_clevr
from ocrl.data.folders import import_folder
from ocrl.data.minari import export_minari, import_minari
from ocrl.data.posed import LAYOUTS, import_posed
from ocrl.data.store import EpisodeStore


def verify(path: str) -> str:
    """Compare all checksums of a store.

    Raises:
        ValueError: naming what is damaged.
    """
    store = EpisodeStore(path)
    damages = store.verify()
    if damages:
        found = "; ".join(str(damage) for damage in damages)
        raise ValueError(f"{len(damages)} damage(s) in {path}: {found}; restore it from a copy")
    return describe(store)


def describe(store: EpisodeStore) -> str:
    """One line about a store."""
    return f"{store.path}: {len(store)} episodes, {store.num_frames} frames, {store.fingerprint}"


def run(options: argparse.Namespace) -> str:
    """Do what the command line says; the line to show for it."""
    source, target = options.source, getattr(options, "target", "")
    if options.command == "export-minari":
        export_minari(EpisodeStore(source), target, data_format=options.format)
        return f"{source} is now the Minari dataset {target}"
    actions: dict[str, Callable[[], str]] = {
        "verify": lambda: verify(source),
        "pack": lambda: describe(EpisodeStore(pack(EpisodeStore(source), target))),
        "unpack": lambda: describe(EpisodeStore(unpack(source, target))),
        "import": lambda: describe(import_folder(source, target, image_size=options.image_size)),
        "import-clevr": lambda: describe(
            import_clevr(source, target, split=options.split, image_size=options.image_size)
        ),
        "import-posed": lambda: describe(
            import_posed(
                source,
                target,
                layout=options.layout,
                image_size=options.image_size,
                num_views=options.num_views,
            )
        ),
        "import-minari": lambda: describe(import_minari(source, target, frames=options.frames)),
    }
    return actions[options.command]()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    imports = ("import", "import-clevr", "import-posed", "import-minari")
    for name in ("verify", "pack", "unpack", *imports, "export-minari"):
        command = commands.add_parser(name)
        command.add_argument("source")
        if name != "verify":
            command.add_argument("target")
        if name == "import-clevr":
            command.add_argument("--split", default="train")
        if name == "import-posed":
            command.add_argument("--layout", choices=tuple(LAYOUTS), required=True)
            command.add_argument("--num-views", type=int, help="the first ones of each scene")
        if name in ("import", "import-clevr", "import-posed"):
            command.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"))
        if name == "import-minari":
            command.add_argument("--frames", help="the observation that holds the frames")
        if name == "export-minari":
            command.add_argument("--format", choices=("arrow", "hdf5"), default="arrow")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a mistake ends in one sentence and exit code 1, Ctrl-C in 130."""
    try:
        sys.stdout.write(run(parse(arguments)) + "\n")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"convert_episodes: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("convert_episodes: stopped; nothing was left half-written\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
