"""Train an agent that sees slots, pixels or the true objects: one command.

python scripts/train_agent.py env=sprites-object_comparison obs=slots encoder.path=PATH
"""

# The launcher comes first: it reads the command line, and sets memory and threads, before torch is
# loaded.
from launch import Command, choice, note_command, output_dir

command = Command("agent", globals())

# isort: split
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import agent_evaluation as after
import hydra
from agent_context import variants_of
from agent_training import Trainer, asked, describe, observed_in, remembers_frames, train
from given_worlds import find_world
from gymnasium.vector import VectorEnv
from observations import SLOTS, find_encoder, make_observed
from omegaconf import DictConfig
from rich.console import Console

from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.evaluation import play, summarize
from ocrl.agents.interface import Agent
from ocrl.agents.run import AgentRun
from ocrl.envs.crafter import crafter_score
from ocrl.log import TensorBoard


@command
def main(config: DictConfig) -> None:
    """Find or train an encoder, then train the agent; each goes on where it was stopped."""
    settings = checkpoint.plain(config)
    check(settings)
    observation = settings["observation"]
    afterwards = after.settings_after_training(settings["evaluation"])
    trainer: Trainer = hydra.utils.instantiate(config.agent, _recursive_=False, _convert_="all")
    directory, env, console = output_dir(), choice("env"), Console(stderr=True, soft_wrap=True)
    if saving.is_finished(directory, trainer.total_steps) and after.is_evaluated(directory):
        models = {name: settings[name]["path"] for name in ("encoder", "world_model")}
        saving.check_finished(directory, asked=asked(settings), **models)
        steps = saving.trained_steps(directory)
        console.print(f"{directory}: trained for {steps} steps before; nothing to do")
        return
    arguments = {name: value for name, value in settings["env"].items() if name != "_target_"}
    variants_of(env, arguments, settings["evaluation"]["worlds"])
    encoder, given = None, find_world(config, trainer, directory=directory)
    if observation["main"] == SLOTS:
        encoder = find_encoder(config, env=env, directory=directory, console=console)
        observation = observed_in(encoder.mode, trainer, observation)
    if given is not None:
        observation = given.observed(observation)
    make = partial(
        make_observed,
        env,
        arguments=arguments,
        observation=observation,
        model=None if encoder is None else encoder.model,
    )

    envs = make(
        num_envs=trainer.num_envs,
        processes=trainer.processes,
        remember=0 if encoder is None else encoder.remember,
        has_frame=remembers_frames(encoder, trainer),
    )
    meta = {"env": env, "env_arguments": arguments, "observation": observation}
    meta[saving.ASKED] = asked(settings)
    try:
        train(
            trainer,
            envs,
            observation=observation,
            encoder=encoder,
            world=given,
            run=AgentRun(directory, {**meta, **describe(encoder, given)}),
            evaluate=partial(
                evaluate,
                make=partial(make, processes=False),
                seed=trainer.seed,
                has_slots=observation["main"] == SLOTS,
                settings=afterwards,
            ),
            score=crafter_score,
            extra=encoder and encoder.part(envs, env=env, arguments=arguments, seed=trainer.seed),
        )
    finally:
        envs.close()
    after.evaluate_run(directory, say=console.print, settings=afterwards)
    note_command(directory)
    console.print(f"agent, progress.csv, evaluation.json, video.mp4, tensorboard: {directory}")


def check(settings: Mapping[str, Any]) -> None:
    """Refuse settings that would be found wrong after training, or passed over.

    Raises:
        ValueError: naming the first of them.
    """
    number = settings["evaluation"]["num_episodes"]
    if number < 1:
        raise ValueError(f"expected evaluation.num_episodes to be from 1 on, got {number}")
    if settings["observation"]["main"] != SLOTS and settings["encoder"]["path"] is not None:
        raise ValueError(
            f"expected obs=slots with encoder.path, got obs={choice('obs')}, which has no encoder"
        )


def evaluate(
    agent: Agent,
    step: int,
    board: TensorBoard,
    *,
    make: Callable[..., VectorEnv[Any, Any, Any]],
    seed: int,
    has_slots: bool,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """Play episodes in environments apart from those of training, and film one.

    Args:
        agent: as it is now.
        step: of training.
        board: for the film.
        make: makes so many environments (`num_envs`).
        seed: of the run.
        has_slots: whether slots are observed.
        settings: see `after.settings_after_training`.
    """
    apart = make(num_envs=min(16, settings["episodes"]))
    episodes = play(
        agent,
        apart,
        num_episodes=settings["episodes"],
        seed=seed,
        is_deterministic=settings["is_deterministic"],
    )
    apart.close()
    picture = after.moving_picture(agent, make(num_envs=1), has_slots=has_slots, settings=settings)
    board.picture("evaluation/episode", picture, step=step)
    summary = summarize(episodes, score=crafter_score)
    score = {} if summary["score"] is None else {"score": summary["score"]}
    return {**summary["mean"], **score}


if __name__ == "__main__":
    main()
