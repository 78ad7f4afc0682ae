"""What the kinds of agents take of an encoder, and how each is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from encoder_modes import Encoder
from gymnasium.vector import VectorEnv
from observations import FRAME, SLOTS

from ocrl.agents.given_world import GivenWorld
from ocrl.agents.model_based import ModelBased
from ocrl.agents.ppo import ModelFree

Trainer: TypeAlias = ModelFree | ModelBased


def observed_in(
    mode: str, trainer: Trainer, observation: Mapping[str, Any], *, world: GivenWorld | None
) -> dict[str, Any]:
    """What the environments are to show an agent whose encoder has a mode.

    Args:
        mode: of the encoder, see `encoder_modes.MODES`.
        trainer: of the agent.
        observation: what is asked for.
        world: that the agent is given, which knows slots without geometry.

    Raises:
        ValueError: if the agent can not train its encoder so, or not on slots that are noisy.
    """
    if mode != "gradient":
        return dict(observation) | ({} if world is None else {"has_geometry": False})
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
    # The policy holds the encoder, so it is given frames.
    return {**observation, "main": FRAME}


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
    if isinstance(trainer, ModelBased):
        has_order = encoder.has_order if encoder else not observation["is_shuffled"]
        network = trainer.network(plain_key=main, has_order=has_order)
        network = network if world is None else world.network(network)
        episodes = encoder and encoder.for_episodes(observation, seed=trainer.seed)
        trainer.train(envs, network=network, encoder=episodes, world=world, **arguments)
        return
    own = encoder if encoder is not None and main != SLOTS else None
    trainer.train(
        envs,
        network=trainer.network(plain_key=main, encoder=own and own.config),
        encoder=own and own.model.encoder,
        **arguments,
    )
