import pytest
import torch

from ocrl.device import find_device


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert find_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    assert find_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(ValueError, match="one of the 2 CUDA devices"):
        find_device("auto", local_rank=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("name", "sentence"), [("gpu", "auto, cpu or"), ("cuda", "the 0 CUDA")])
def test_devices_that_are_not_there_are_refused(monkeypatch, name, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        find_device(name)
