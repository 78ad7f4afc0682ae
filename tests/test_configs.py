"""Every configuration file: its class, its arguments, and that it composes and builds."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import ocrl
from ocrl import checkpoint, interfaces
from ocrl.interfaces import (
    Backbone,
    CodePrior,
    Decoder,
    Initializer,
    Objective,
    SlotDynamics,
    SlotEncoder,
    Tokenizer,
)
from ocrl.nn.latent import SlotLatent
from ocrl.nn.outcome import OutcomeHead
from ocrl.properties import PropertySpec
from ocrl.step import parameter_groups

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
ROOTS = [path for path in FILES if path.parent == CONFIGS]
TABLES = sorted((CONFIGS / "variants").glob("*.yaml"))
"""Name changes of an environment each, and build nothing."""
PARTS = [
    path
    for path in FILES
    if path.parent != CONFIGS and path not in TABLES and "@package" not in path.read_text()
]
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
SMALL_EXPERIMENTS = sorted((CONFIGS / "experiment/small").glob("*.yaml"))
GROUPS = {
    "encoder": ("ocrl.encoders", SlotEncoder),
    "decoder": ("ocrl.decoders", Decoder),
    "objective": ("ocrl.objectives", Objective),
    "backbone": ("ocrl.backbones", Backbone),
    "initializer": ("ocrl.initializers", Initializer),
    "tokenizer": ("ocrl.tokenizers", Tokenizer),
    "properties": ("ocrl.properties", PropertySpec),
    "prior": ("ocrl.priors", CodePrior),
    "dynamics": ("ocrl.dynamics", SlotDynamics),
    "latent": ("ocrl.nn.latent", SlotLatent),
    "outcome": ("ocrl.nn.outcome", OutcomeHead),
}
CONSTANTS = {"eps"}
"""Have a default in Python and no line."""


def name_of(path):
    return path.relative_to(CONFIGS).as_posix()


def target_of(path):
    module, _, name = flat(path)["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def flat(path):
    """A file's keys with those of a sibling that it inherits from."""
    content = yaml.safe_load(path.read_text()) or {}
    merged = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            merged |= {re.sub(r".*@", "", key).partition(".")[0]: {} for key in entry}
        elif entry == "_self_":
            merged |= content
        elif "@" in entry:
            merged[entry.partition("@")[2]] = {}
        else:
            merged |= flat(path.with_name(f"{entry}.yaml"))
    return merged | content


def composed(name, *overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose(name, overrides=list(overrides))


def test_the_files_are_found():
    assert len(PARTS) > 25 and ROOTS and EXPERIMENTS
    assert {path.parent.name for path in PARTS} >= {*GROUPS, "env", "trainer", "optimizer"}


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_file_has_every_argument_of_its_class_once(path):
    keys = set(flat(path)) - {"_target_", "_partial_"}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target_of(path)).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind not in variadic}
    assert keys <= named, f"{keys - named} are no arguments"
    # Optimisers have many switches that say how, not what; their files name some.
    if not flat(path).get("_partial_"):
        assert named - keys <= CONSTANTS, f"{named - keys} have no line"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_says_nothing_twice(path):
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{path} repeats a key of {keys}"
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    yaml.load(path.read_text(), Strict)


def classes_of(package, base):
    module = importlib.import_module(package)
    names = [package]
    if module.__spec__.submodule_search_locations is not None:
        names += [f"{package}.{entry.name}" for entry in pkgutil.iter_modules(module.__path__)]
    for name in names:
        for found in vars(importlib.import_module(name)).values():
            is_own = inspect.isclass(found) and found.__module__ == name
            if is_own and issubclass(found, base) and not inspect.isabstract(found):
                yield found


@pytest.mark.parametrize("group", GROUPS)
def test_every_class_of_a_group_has_a_file(group):
    package, base = GROUPS[group]
    classes = set(classes_of(package, base))
    assert classes and not any(inspect.isabstract(found) for found in classes)
    assert {target_of(path) for path in (CONFIGS / group).glob("*.yaml")} >= classes


@pytest.mark.parametrize("path", ROOTS, ids=name_of)
def test_a_root_composes(path):
    config = composed(path.stem)
    # The name is made of choices that only a running command has.
    for key in set(config) - {"name"}:
        if OmegaConf.is_config(config[key]):
            assert OmegaConf.to_yaml(config[key], resolve=True)
    assert "name" in config
    with_hydra = yaml.safe_load(path.read_text())["hydra"]
    assert with_hydra["run"]["dir"] == "outputs/${hydra:job.name}/${name}"
    assert with_hydra["job"]["chdir"] is False


def built_model(config):
    names = ("encoder", "decoder", "objectives", "weights", "is_conditioned")
    settings = {
        name: OmegaConf.to_container(config[name], resolve=True)
        if OmegaConf.is_config(config[name])
        else config[name]
        for name in names
    }
    return checkpoint.build({"_target_": "ocrl.model.SlotModel", **settings})


def small(*overrides):
    return composed("pretrain", "image_size=[32,32]", "num_slots=3", *overrides)


@pytest.mark.parametrize("name", [path.stem for path in (CONFIGS / "encoder").glob("*.yaml")])
def test_every_encoder_builds_in_the_main_job(name, small_vit):
    model = built_model(small(f"encoder={name}", f"vit={small_vit}"))
    assert (model.encoder.num_slots, model.encoder.slot_dim) == (3, 64)


@pytest.mark.parametrize("path", sorted((CONFIGS / "decoder").glob("*.yaml")), ids=name_of)
def test_every_decoder_builds_in_the_main_job(path, small_vit):
    options = (f"decoder={path.stem}", f"vit={small_vit}")
    decoder = checkpoint.build(checkpoint.plain(small(*options).decoder))
    tells_places = {0: (), 2: ("encoder=located_placed",), 3: ("encoder=placed",)}
    model = built_model(small(*options, *tells_places[decoder.num_axes]))
    assert isinstance(model.decoder, Decoder)


@pytest.mark.parametrize("path", sorted((CONFIGS / "objective").glob("*.yaml")), ids=name_of)
def test_every_objective_can_join_the_main_job(path, small_vit):
    added = (f"+objective@objectives.extra={path.stem}", "+weights.extra=0.5")
    model = built_model(small(*added, f"vit={small_vit}"))
    assert isinstance(model.objectives["extra"], Objective) and model.weights["extra"] == 0.5


@pytest.mark.parametrize("group", ["backbone", "initializer"])
def test_every_part_of_an_encoder_can_be_chosen(group, small_vit):
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        model = built_model(small(f"{group}@encoder.{group}={path.stem}", f"vit={small_vit}"))
        assert isinstance(getattr(model.encoder, group), target_of(path))


def test_every_tokenizer_can_be_chosen():
    for path in sorted((CONFIGS / "tokenizer").glob("*.yaml")):
        model = built_model(small("decoder=slate", f"tokenizer@decoder.target={path.stem}"))
        assert model.decoder.space == "tokens"


@pytest.mark.parametrize("path", sorted((CONFIGS / "dynamics").glob("*.yaml")), ids=name_of)
def test_every_dynamics_builds_in_a_world_model(path):
    sizes = ("slot_dim=64", "num_actions=5", "action_dim=0", "code_sizes=[8,8]")
    config = composed("world_model", f"dynamics={path.stem}", *sizes)
    parts = {name: checkpoint.plain(config[name]) for name in ("dynamics", "outcome")}
    built = checkpoint.build({"_target_": "torch.nn.ModuleDict", "modules": parts})
    assert (built["dynamics"].slot_dim, built["dynamics"].num_actions) == (64, 5)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_recipe_composes_and_builds(path, small_vit):
    name = yaml.safe_load(path.read_text()).get("env", path.stem)
    overrides = [f"experiment={path.stem}"]
    if (CONFIGS / "env" / f"{name}.yaml").is_file():
        overrides.append(f"env={name}")
    config = composed("pretrain", *overrides, f"vit={small_vit}")
    trainer = instantiate(config.trainer, _convert_="all")
    # Rates name parts that are there, and that learn.
    assert len(parameter_groups(built_model(config), trainer.rates)) >= 2 + len(trainer.rates)


@pytest.mark.parametrize("path", SMALL_EXPERIMENTS, ids=name_of)
def test_every_small_recipe_is_of_one_size_and_budget(path):
    config = composed("pretrain", f"experiment=small/{path.stem}", "rollouts=crafter")
    small = composed("pretrain", "experiment=small", "rollouts=crafter")
    # What a decoder foretells may learn at a rate of its own; slots may not.
    rates = checkpoint.plain(config.trainer.rates)
    assert set(rates) <= {"decoder.target", "decoder.decoder.target"}
    config.trainer.rates = small.trainer.rates
    for key in ("slot_dim", "num_slots", "image_size", "data", "optimizer", "trainer", "collect"):
        assert config[key] == small[key]
    model = built_model(config)
    assert len(parameter_groups(model, rates)) >= 2 + len(rates)
    backbone = getattr(model.encoder.backbone, "backbone", model.encoder.backbone)
    assert backbone.grid == (9, 9) and backbone.out_dim == 64


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
@pytest.mark.parametrize("group", ["encoder", "decoder", "optimizer"])
def test_a_recipe_leaves_every_choice_open(path, group):
    # What belongs to one encoder only must not stand in a recipe: another could not be chosen.
    for option in telling(group):
        config = composed("pretrain", f"experiment={path.stem}", f"{group}={option.stem}")
        keys = set(flat(option)) - {"_partial_"}
        assert set(config[group]) - {"_partial_"} == keys


def telling(group):
    """Few options of a group: a key that is not of all options is missing in one of these."""
    keys = {path: frozenset(flat(path)) for path in sorted((CONFIGS / group).glob("*.yaml"))}
    common, shared, chosen = frozenset.intersection(*keys.values()), None, []
    while shared != common:
        left = {path: own if shared is None else own & shared for path, own in keys.items()}
        chosen.append(min(left, key=lambda path: len(left[path])))
        shared = left[chosen[-1]]
    return chosen


@pytest.mark.parametrize("path", sorted((CONFIGS / "optimizer").glob("*.yaml")), ids=name_of)
def test_every_optimizer_takes_parameter_groups(path):
    make = instantiate(composed("pretrain", f"optimizer={path.stem}").optimizer, _convert_="all")
    layer = nn.Linear(2, 2)
    made = make([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}])
    assert len(made.param_groups) == 2


def test_names_that_others_type_stay():
    config = composed("pretrain")
    for key in ("trainer.max_steps", "trainer.seed", "data.path"):
        assert OmegaConf.select(config, key, default="missing") != "missing"
    assert callable(ocrl.load) and interfaces.SlotEncoder is SlotEncoder
