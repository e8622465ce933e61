"""A hub that cannot be reached is told in seconds, whatever is fetched from it."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from cl_softcot.errors import UserError
from cl_softcot.machine import hub


@pytest.fixture(params=["refuses", "hangs"])
def dead_hub(request, monkeypatch, tmp_path):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    if request.param == "hangs":
        listening.listen()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.5")
    monkeypatch.setenv(hub._SILENT, "")
    yield
    listening.close()


def _tokenizer():
    from cl_softcot.models.loading import read_tokenizer

    read_tokenizer("org/name", "org/name", None, False)


def _model():
    import torch

    from cl_softcot.models.loading import read_model

    read_model("org/name", "org/name", dtype=torch.float32)


def _shape():
    from cl_softcot.models.shapes import architecture

    architecture("org/name")


def _data():
    from cl_softcot.tasks._sources import read_hub

    read_hub.__wrapped__("org/name", None, "test")


@pytest.mark.parametrize("what", [_tokenizer, _model, _shape, _data])
def test_it_is_told_in_seconds(what, dead_hub):
    import datasets  # noqa: F401  (seconds of their own, for once)
    import transformers  # noqa: F401

    began = time.monotonic()
    with pytest.raises(UserError, match=r"the hub cannot be reached|cannot be had from the hub"):
        what()
    assert time.monotonic() - began < 8
    assert constants.HF_HUB_OFFLINE is False, "only while something is fetched"


def test_a_folder_asks_nobody(dead_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("nothing is to be asked"))
    with hub.fetched(str(tmp_path)):
        assert constants.HF_HUB_OFFLINE is False


def test_a_worker_does_not_wait_again(dead_hub, monkeypatch):
    assert not hub.reachable()
    monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("it was asked a moment ago"))
    assert not hub.reachable()


def test_a_hub_that_answers_is_asked_once(dead_hub, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda address: asked.append(address) or True)
    with hub.fetched("org/name"):
        assert constants.HF_HUB_OFFLINE is False
    assert hub.reachable() and len(asked) == 1
    hub._answered.clear()
