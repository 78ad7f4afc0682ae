"""What the kinds of agents take of an encoder, and how each is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from encoder_modes import Encoder
from gymnasium.vector import VectorEnv
from observations import FRAME, SLOTS

from ocrl.agents import spaces
from ocrl.agents.features import OBJECTS
from ocrl.agents.given_world import GivenWorld
from ocrl.agents.model_based import ModelBased
from ocrl.agents.ppo import ModelFree
from ocrl.envs.object_table import place_columns

Trainer: TypeAlias = ModelFree | ModelBased
_HOW_FAR_AND_WHERE = ("total_steps", "log_every", "evaluate_every", "device", "processes")
"""Settings of an agent that do not change what is learned until a step."""


def observed_in(mode: str, trainer: Trainer, observation: Mapping[str, Any]) -> dict[str, Any]:
    """What the environments are to show an agent whose encoder has a mode.

    Args:
        mode: of the encoder, see `encoder_modes.MODES`.
        trainer: of the agent.
        observation: what is asked for.

    Raises:
        ValueError: if the agent can not train its encoder so, or not on slots that are noisy, or
            can not learn from slots of an encoder that changes.
    """
    if mode == "replay" and trainer.algorithm == "dqn":
        raise ValueError(
            "expected encoder.mode=frozen or gradient for agent=dqn, got replay: what it learns "
            "from would be slots of every encoder that there was"
        )
    if mode != "gradient":
        return dict(observation)
    if isinstance(trainer, ModelBased):
        raise ValueError(
            f"expected encoder.mode=frozen or replay for agent={trainer.algorithm}, got gradient: "
            "no gradient of the policy reaches the encoder through a world model of its slots"
        )
    if observation["is_noisy"]:
        raise ValueError(
            "expected observation.is_noisy=false for encoder.mode=gradient, got true: a policy "
            "that binds frames again when it learns has to find the slots that it acted on"
        )
    # The policy holds the encoder, so it is given frames, and reads slots as they are.
    return {**observation, "main": FRAME, "has_geometry": False}


def asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that decide what is learned, of all of `configs/agent.yaml`.

    Models are left out, which are known by their weights, and how long and how fast a run goes.
    """
    kept = {name: settings[name] for name in ("env", "agent", "observation", "goal")}
    kept["agent"] = {k: v for k, v in settings["agent"].items() if k not in _HOW_FAR_AND_WHERE}
    if settings["world_model"]["path"] is not None:
        kept["world_model"] = {"learns": settings["world_model"]["learns"]}
    if settings["observation"]["main"] == SLOTS:
        mode = settings["encoder"]["mode"]
        tuned = {"frozen": (), "replay": ("every", "replay"), "gradient": ("every",)}.get(mode, ())
        kept["encoder"] = {name: settings["encoder"][name] for name in ("mode", *tuned)}
    return kept


def describe(encoder: Encoder | None, world: GivenWorld | None) -> dict[str, Any]:
    """What an agent's `meta.json` says of the models that it begins with."""
    return {
        "encoder": None if encoder is None else dict(encoder.described),
        "world_model": None if world is None else world.meta,
    }


def remembers_frames(encoder: Encoder | None, trainer: Trainer) -> bool:
    """Whether frames stand beside the slots, to make slots of again once the encoder changes."""
    is_tuned = encoder is not None and encoder.mode == "replay"
    return is_tuned and isinstance(trainer, ModelBased)


def train(
    trainer: Trainer,
    envs: VectorEnv[Any, Any, Any],
    *,
    observation: Mapping[str, Any],
    encoder: Encoder | None,
    world: GivenWorld | None,
    **arguments: Any,
) -> None:
    """Train an agent of any kind.

    Args:
        trainer: of the agent.
        envs: its environments.
        observation: what they show.
        encoder: of the slots; None without.
        world: that an agent with a world model begins with; None for a new one.
        **arguments: that all kinds of agents take alike.
    """
    main = observation["main"]
    num_geometry = 0
    if encoder is not None and main == SLOTS:
        slots = spaces.parts(envs.single_observation_space, plain_key=main)[SLOTS]
        num_geometry = slots.shape[1] - encoder.model.encoder.slot_dim
    if isinstance(trainer, ModelBased):
        # The rows of true objects are those in view: one that leaves moves the others up.
        has_order = encoder is not None and encoder.has_order
        columns = envs.get_attr("object_columns")[0] if main == OBJECTS else ()  # type: ignore[attr-defined]
        network = trainer.network(
            plain_key=main,
            has_order=has_order,
            num_geometry=num_geometry,
            places=place_columns(columns),
        )
        network = network if world is None else world.network(network)
        episodes = encoder and encoder.for_episodes(observation, seed=trainer.seed)
        trainer.train(envs, network=network, encoder=episodes, world=world, **arguments)
        return
    own = encoder if encoder is not None and main != SLOTS else None
    trainer.train(
        envs,
        network=trainer.network(
            plain_key=main, num_geometry=num_geometry, encoder=own and own.config
        ),
        encoder=own and own.model.encoder,
        **arguments,
    )
