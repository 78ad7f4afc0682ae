import signal

import pytest

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
