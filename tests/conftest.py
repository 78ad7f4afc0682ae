import os
import signal

import pytest

# One thread in each of several processes, before torch starts its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """A process per core, few enough for the memory: each holds torch."""
    return min(8, len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small random vision transformer, for configurations that name one."""
    transformers = pytest.importorskip("transformers")
    folder = str(tmp_path_factory.mktemp("vit"))
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        patch_size=16,
        image_size=32,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    return folder
