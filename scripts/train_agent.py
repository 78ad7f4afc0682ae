"""Train an agent that sees slots, pixels or the true objects: one command.

python scripts/train_agent.py env=sprites-object_comparison obs=slots encoder.path=PATH
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import choice, note_command, output_dir, script

# isort: split
from collections.abc import Mapping
from functools import partial

import agent_evaluation as after
import hydra
from agent_training import Trainer, asked, describe, observed_in, remembers_frames, train
from given_worlds import find_world
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


@script("agent")
def main(config: DictConfig) -> None:
    """Find or train an encoder, then train the agent; each goes on where it was stopped."""
    settings = checkpoint.plain(config)
    observation, evaluation = settings["observation"], settings["evaluation"]
    if evaluation["num_episodes"] < 1:
        raise ValueError(
            f"expected evaluation.num_episodes to be from 1 on, got {evaluation['num_episodes']}"
        )
    afterwards = after.settings_after_training(evaluation)
    trainer: Trainer = hydra.utils.instantiate(config.agent, _recursive_=False, _convert_="all")
    directory, env, console = output_dir(), choice("env"), Console(stderr=True, soft_wrap=True)
    if saving.is_finished(directory, trainer.total_steps) and after.is_evaluated(directory):
        path = settings["encoder"]["path"] if observation["main"] == SLOTS else None
        begun_with = settings["world_model"]["path"]
        saving.check_finished(
            directory, asked=asked(settings), encoder=path, world_model=begun_with
        )
        steps = saving.trained_steps(directory)
        console.print(f"{directory}: trained for {steps} steps before; nothing to do")
        return
    if observation["main"] != SLOTS and settings["encoder"]["path"] is not None:
        raise ValueError(
            f"expected obs=slots with encoder.path, got obs={choice('obs')}, which has no encoder"
        )
    arguments = {name: value for name, value in settings["env"].items() if name != "_target_"}
    encoder, given = None, find_world(config, trainer, directory=directory)
    if observation["main"] == SLOTS:
        encoder = find_encoder(config, env=env, directory=directory, console=console)
        observation = observed_in(encoder.mode, trainer, observation, world=given)
    make = partial(
        make_observed,
        env,
        arguments=arguments,
        observation=observation,
        model=None if encoder is None else encoder.model,
    )

    def evaluate(agent: Agent, step: int, board: TensorBoard) -> Mapping[str, float]:
        apart = make(num_envs=min(16, evaluation["num_episodes"]), processes=False)
        episodes = play(
            agent,
            apart,
            num_episodes=evaluation["num_episodes"],
            seed=trainer.seed,
            is_deterministic=evaluation["is_deterministic"],
        )
        apart.close()
        picture = after.moving_picture(
            agent,
            make(num_envs=1, processes=False),
            has_slots=observation["main"] == SLOTS,
            settings=afterwards,
        )
        board.picture("evaluation/episode", picture, step=step)
        summary = summarize(episodes, score=crafter_score)
        score = {} if summary["score"] is None else {"score": summary["score"]}
        return {**summary["mean"], **score}

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
            evaluate=evaluate,
            score=crafter_score,
            extra=encoder and encoder.part(envs, env=env, arguments=arguments, seed=trainer.seed),
        )
    finally:
        envs.close()
    after.evaluate_run(directory, say=console.print, settings=afterwards)
    note_command(directory)
    console.print(f"agent, progress.csv, evaluation.json, video.mp4, tensorboard: {directory}")


if __name__ == "__main__":
    main()
