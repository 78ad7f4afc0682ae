import importlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton

ROOT = Path(__file__).parents[2]


sys.path.insert(0, str(ROOT / "scripts"))
launch = importlib.import_module("launch")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a main function as a script would be; gives exit code, configuration and stderr."""
    before, handlers = dict(Singleton._instances), set(logging.getLogger().handlers)

    def run(*arguments, main=None, name="pretrain", **options):
        seen = []

        def keep(config):
            seen.append(config)
            if main is not None:
                main(config)

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("OCRL_KEEP_ALLOCATOR", "1")
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["scripts/pretrain_slots.py", *arguments])
        code = 0
        try:
            launch.Command(name, globals(), **options)(keep)()
        except SystemExit as error:
            code = error.code
        finally:
            GlobalHydra.instance().clear()
        return code, seen, capsys.readouterr().err

    yield run
    Singleton._instances = before
    # Hydra's own handlers write to streams that end with the test.
    for handler in set(logging.getLogger().handlers) - handlers:
        logging.getLogger().removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(
    ("argument", "nearest", "listed"),
    [
        ("env=crafterr", "crafter", "sprites-reach"),
        ("encoder=savvi", "savi", "smooth_sa"),
        ("decoder=brodcast", "broadcast", "mlp"),
        ("experiment=sprits", "sprites", "minigrid"),
        ("experiment=small/spt", "spot", "slot_ssm"),
        ("trainer.max_step=3", "trainer.max_steps", "trainer.seed"),
        ("encodr=savi", "encoder", "num_slots"),
        ("data.clip_lenght=4", "data.clip_length", "data.path"),
        ("encoder.backbone.out_dmi=3", "encoder.backbone.out_dim", "encoder.backbone.image_size"),
    ],
)
def test_an_unknown_name_gives_those_that_exist_and_the_nearest(command, argument, nearest, listed):
    code, seen, err = command(argument)
    assert code == 1 and not seen
    assert f"Did you mean {nearest!r}?" in err and listed in err
    assert err.startswith("pretrain_slots: there is no ") and err.count("\n") == 1
    assert "Traceback" not in err and "_target_" not in err


@pytest.mark.parametrize(
    ("name", "arguments", "sentence", "absent"),
    [
        (
            "evaluate",
            "encoder=savi",
            "no option 'encoder'; there are baselines",
            "decoder",
        ),
        ("collect", "decoder=mlp", "there are collect, data, env, ", "solver"),
        ("agent", "agent.n_steps=1", "Did you mean 'agent.arguments.n_steps'?", "'pooling"),
        (
            *("agent", "agent.algorithm.n_steps=8"),
            "'agent.algorithm.n_steps': agent.algorithm is a value. Did you mean "
            "'agent.arguments.n_steps'?",
            "there are",
        ),
        ("pretrain", "seed=1", "Did you mean 'collect.seed' or 'trainer.seed'?", "append"),
        ("pretrain", "backbone=vit", "mean 'backbone@encoder.backbone'?", "append"),
        ("pretrain", "backbone@encoder.backbone=cnn encodr=savi", "mean 'encoder'?", "append"),
        ("pretrain", "objective@weights.x=preheat", " +objective@weights.x adds it.", "append"),
    ],
)
def test_an_unknown_option_lists_what_the_script_has(command, name, arguments, sentence, absent):
    code, seen, err = command(*arguments.split(), name=name)
    assert code == 1 and not seen and err.count("\n") == 1
    assert sentence in err and absent not in err


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("num_slots=seven", "num_slots to be a number, such as "),
        ("trainer.max_steps=true", "trainer.max_steps to be a number, such as "),
        ("encoder.num_iterations_first=[2]", ", got [2]"),
        ("trainer.compile=perhaps", "trainer.compile to be true or false, got perhaps"),
        ("trainer.compile=1", "trainer.compile to be true or false, got 1"),
        ("image_size=64", "image_size to be a list, such as ["),
        ("+weights.contrast=0.1 weights.coherence=big", "weights.coherence to be a number"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(command, argument, sentence):
    code, seen, err = command("env=crafter", *argument.split())
    assert code == 1 and not seen
    assert err.startswith("pretrain_slots: expected ") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("num_slots=0", "expected num_slots of at least 1, got 0"),
        ("slot_dim=-1", "expected slot_dim of at least 1, got -1"),
        ("image_size=[0,64]", "expected image_size of at least 1, got [0, 64]"),
        ("data.batch_size=0", "expected data.batch_size of at least 1, got 0"),
        ("optimizer.lr=-1", "expected optimizer.lr of at least 0, got -1"),
    ],
)
def test_a_number_too_small_is_told_by_its_option(command, argument, sentence):
    code, seen, err = command("env=sprites", argument)
    assert (code, seen, err) == (1, [], f"pretrain_slots: {sentence}\n")


@pytest.mark.parametrize(
    "argument",
    [
        *("trainer.max_steps=null", "trainer.precision=bf16-mixed", "trainer.precision=32"),
        *("optimizer.lr=1", "num_slots=${slot_dim}", "encoder=located", "trainer.compile=true"),
        *("+encoder.more=1", "data.path=somewhere", "image_size=[32,32]"),
    ],
)
def test_a_value_of_the_same_kind_nothing_or_another_setting_passes(command, argument):
    code, seen, err = command("env=crafter", argument)
    assert code == 0 and len(seen) == 1 and err == ""


@pytest.mark.parametrize(
    ("script", "name", "groups"),
    [
        (
            *("train_properties", "pretrain"),
            {"env", "encoder", "decoder", "optimizer", "trainer", "rollouts", "experiment"}
            | {"objective@objectives.reconstruction", "backbone@encoder.backbone"}
            | {"initializer@encoder.initializer", "properties@decoder.spec"},
        ),
        ("collect_rollouts", "collect", {"env", "rollouts"}),
        ("evaluate_discovery", "evaluate", set()),
    ],
)
def test_help_is_the_scripts_own(script, name, groups):
    help_text = importlib.import_module("help_text").help_text
    chosen = ["experiment=set_prediction"] if name == "pretrain" else []
    docstring = f"Do what {script} does.\n\npython scripts/{script}.py\n"
    text = help_text(name, chosen, job=script, docstring=docstring)
    assert f"  python scripts/{script}.py" in text and "--cfg job shows" in text
    listed = text.partition("Groups, chosen as")[2].splitlines()[2:]
    assert {line.partition(": ")[0] for line in listed} == groups
    assert all(": " in line and line.split(": ")[1] for line in listed)
    assert (script == "train_properties") == ("Do what" in text)


def test_help_is_said_and_nothing_is_done(command):
    for flag in ("--help", "-h"):
        code, seen, err = command(flag, "env=sprites", "optimizer=sgd")
        assert (code, seen, err) == (0, [], "")
    code, _, err = command("--help", "encodr=savi")
    assert code == 1 and "Did you mean 'encoder'?" in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--help", "env=sprites"), 0, "Groups, chosen as"),
        (("encodr=savi",), 1, "Did you mean 'encoder'?"),
        (("num_slots=seven",), 1, "num_slots to be a number"),
        (("num_slots=0",), 1, "num_slots of at least 1"),
    ],
)
def test_the_command_line_is_answered_before_anything_heavy_is_loaded(
    tmp_path, options, code, said
):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is loaded')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "pretrain_slots.py"), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and said in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


def test_settings_of_hydra_are_not_taken_for_the_mistake(command):
    code, _, err = command("hydra.verbose=false", "encodr=savi")
    assert code == 1 and "there is no option 'encodr'" in err and "'encoder'?" in err


@pytest.mark.parametrize("argument", ["foo", "trainer.max_steps=[1", "=3"])
def test_an_argument_that_is_none_is_one_sentence(command, argument):
    code, _, err = command(argument)
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    "error",
    [ValueError("expected 3,\ngot 4"), FileNotFoundError("no file x"), PermissionError("no")],
)
def test_a_users_mistake_is_one_sentence(command, error):
    def main(config):
        raise error

    code, _, err = command(main=main)
    assert code == 1
    assert err == f"pretrain_slots: {' '.join(str(error).split())}\n"


def test_a_full_disk_says_that_nothing_is_lost(command):
    def main(config):
        raise OSError(28, "No space left on device", "/x/model")

    code, _, err = command(main=main)
    assert code == 1 and "/x/model" in err and "same command again" in err


def test_out_of_memory_says_what_to_lower(command):
    def main(config):
        raise MemoryError

    assert "data.batch_size" in command(main=main)[2]


def test_an_interruption_keeps_its_message_and_exits_130(command):
    def main(config):
        raise KeyboardInterrupt("stopped at step 3")

    code, _, err = command(main=main)
    assert (code, err) == (130, "pretrain_slots: stopped at step 3\n")


@pytest.mark.parametrize(
    ("goes_on", "says"),
    [(True, "the same command goes on where it was stopped"), (False, "begins anew")],
)
def test_an_interruption_says_whether_the_command_goes_on(command, goes_on, says):
    def main(config):
        raise KeyboardInterrupt

    code, _, err = command(main=main, goes_on=goes_on)
    assert code == 130 and says in err and err.count("\n") == 1


def test_what_saves_nothing_on_the_way_does_not_say_that_it_goes_on():
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    marked = {path.stem for path in scripts if "goes_on=False" in path.read_text()}
    measuring = {path.stem for path in scripts if "import subject_of" in path.read_text()}
    assert marked == measuring | {"evaluate_agent", "sample_scenes"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter there")
def test_an_interruption_of_the_imports_is_one_sentence(tmp_path):
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "pretrain_slots.py")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OCRL_TRACEBACK": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "pretrain_slots: interrupted before anything was begun\n"
    assert done.returncode == -signal.SIGINT


def test_two_commands_do_not_write_into_one_directory(command):
    def main(config):
        # As another process would, with a handle of its own.
        with launch.only_writer(launch.output_dir()):
            raise AssertionError("let in")

    code, _, err = command(main=main)
    assert code == 1 and "another process is writing into " in err


def test_a_defect_keeps_its_traceback(command):
    def main(config):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        command(main=main)


def test_a_traceback_is_shown_where_asked_for(command, monkeypatch):
    def main(config):
        raise ValueError("theirs")

    monkeypatch.setenv("OCRL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="theirs"):
        command(main=main)


def test_a_constructors_mistake_is_not_wrapped_in_hydras(command):
    import hydra

    def main(config):
        hydra.utils.instantiate(config.trainer, _convert_="all")

    code, _, err = command("trainer.clip_kind=7", main=main)
    assert (code, err) == (1, "pretrain_slots: expected trainer.clip_kind to be 2 or inf, got 7\n")


def test_outputs_go_to_a_directory_that_only_the_command_determines(command, tmp_path):
    found = []

    def main(config):
        found.append((launch.output_dir(), launch.choice("env"), HydraConfig.get().job.name))

    for _ in range(2):
        assert command("env=sprites", "encoder=psb", "trainer.seed=4", main=main)[0] == 0
    expected = tmp_path / "outputs" / "test_launch" / "sprites-psb-4"
    assert found == [(expected, "sprites", "test_launch")] * 2
    # Worlds that share a class are told apart.
    world = ("env=minigrid", "env.id=MiniGrid-Fetch-5x5-N2-v0", "encoder=psb")
    assert command(*world, main=main)[0] == 0
    assert found[-1][0].name == "MiniGrid-Fetch-5x5-N2-v0-psb-0"


# --- the recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["rollouts=crafter", "experiment=crafter"]),
        (["env=minigrid"], ["rollouts=minigrid", "experiment=minigrid"]),
        (["env=sprites-object_goal"], ["rollouts=sprites", "experiment=sprites"]),
        (["env=sprites", "experiment=crafter"], ["rollouts=sprites"]),
        (["env=sprites", "experiment=crafter", "rollouts=null"], []),
        (["env=scenes_multiview"], ["rollouts=scenes_multiview"]),
        (["env=nothing"], []),
        (["--cfg", "job", "env=minigrid"], ["rollouts=minigrid", "experiment=minigrid"]),
    ],
)
def test_the_recipe_follows_the_environment(arguments, expected):
    assert launch.choices_of_environment("pretrain", arguments) == expected


def test_scripts_get_the_choices_that_they_have():
    assert launch.choices_of_environment("collect", ["env=crafter"]) == ["rollouts=crafter"]
    assert launch.choices_of_environment("evaluate", []) == []


def test_a_sweep_over_environments_has_to_name_the_recipe():
    with pytest.raises(ValueError, match="needs rollouts=NAME and experiment=NAME"):
        launch.choices_of_environment("pretrain", ["env=crafter,minigrid"])


def test_what_the_user_says_wins_over_the_recipe(command):
    code, seen, _ = command("env=sprites", "num_slots=3")
    assert code == 0 and seen[0].num_slots == 3


# --- memory and threads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("99900000 100000", None)],
)
def test_a_containers_share_of_the_processor_counts(tmp_path, content, expected):
    file = tmp_path / "cpu.max"
    file.write_text(content)
    everything = launch.num_cores(tmp_path / "none")
    assert launch.num_cores(file) == min(expected or everything, everything)


def test_threads_that_the_user_set_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launch.set_num_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


FAULTS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import launch
took = launch.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(10):
    blocks = [b"x" * (8 << 20) for _ in range(8)]
    del blocks
print(int(took), faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
@pytest.mark.parametrize(
    ("extra", "is_kept"),
    [({}, True), ({"OCRL_KEEP_ALLOCATOR": "1"}, False), ({"MALLOC_ARENA_MAX": "8"}, False)],
)
def test_freed_memory_is_kept_unless_switched_off(extra, is_kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("OCRL_KEEP_ALLOCATOR", None)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(ROOT / "scripts")],
        env=clean | extra,
        capture_output=True,
        text=True,
        check=True,
    )
    took, faults = map(int, done.stdout.split())
    assert bool(took) is is_kept
    # A round needs 16,384 pages: once where they are kept, ten times where they are not.
    assert (faults < 3 * 16_384) is is_kept


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["x=1"]),
        (["env=sprites", "--cfg", "job"], ["env=sprites", "x=1", "--cfg", "job"]),
        (["--cfg", "job", "env=sprites"], ["--cfg", "job", "env=sprites", "x=1"]),
        (["~a", "-m"], ["~a", "x=1", "-m"]),
    ],
)
def test_added_overrides_stand_beside_the_users(arguments, expected):
    assert launch.with_overrides(arguments, ["x=1"]) == expected


@pytest.mark.parametrize(
    "name", ["compare", "compare_encoders", "compare_methods", "compare_set_prediction"]
)
def test_comparing_scripts_say_their_defaults_and_where_they_write(
    name, load_script, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        load_script(name).main()
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: outputs/{name})" in text and f"python scripts/{name}.py" in text


@pytest.mark.parametrize("name", ["compare_encoders", "compare_methods", "compare_set_prediction"])
def test_comparing_scripts_end_an_interruption_in_a_sentence(
    name, load_script, stand_in, monkeypatch, tmp_path, capfd
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    module = load_script(name)
    stand_in(stop)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 130
    said = f"{name}: interrupted; the same command goes on where it was stopped\n"
    assert capfd.readouterr().err == said
