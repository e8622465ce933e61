"""Order of the tests: fast ones first, so that a mistake shows early; and a cache of its own for every test."""

from __future__ import annotations

import os

import pytest
import run_fakes


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """For what is made once for several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CL_SOFTCOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CL_SOFTCOT_CACHE_SIZE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_is_made_once(tmp_path_factory):
    """Of several processes the folder that holds their own ones; they ask for the same things."""
    own = tmp_path_factory.getbasetemp()
    run_fakes.shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made_once"
    run_fakes.shared.mkdir(exist_ok=True)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """Processes that a test starts use it too."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CL_SOFTCOT_CACHE", str(folder))
    return folder


# Run in one process, in order: later ones need what earlier ones made, or all use one machine-wide server or set-up.
TOGETHER = (
    "tests/docs/test_documented_commands.py",
    "tests/config/test_experiments.py",
    "tests/sweep/test_sweep_cluster.py",
    "tests/learning/test_learning.py::test_killed_and_resumed",
    "tests/run/test_run.py::test_changed_settings_in_a_used_folder",
    "tests/diagnostics/test_diagnostics.py::test_every_diagnostic",
)


def pytest_xdist_make_scheduler(config, log):
    """Tests are dealt out one by one, but for those that belong together (xdist's own groups do nothing under pytest 9.2)."""
    from xdist.scheduler import LoadScopeScheduling

    class Dealt(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((group for group in TOGETHER if nodeid.startswith(group)), nodeid)

    return Dealt(config, log)


# Hundreds of short ones: no process waits long for another's last test.
LAST = ("tests/models/test_model_families.py",)


def pytest_collection_modifyitems(items):
    """Fast ones first; of the slow ones first those that run in one process, which take longest, and the shortest at the end."""

    def place(item) -> tuple[bool, bool, bool]:
        slow = item.get_closest_marker("slow") is not None
        return slow, slow and not item.nodeid.startswith(TOGETHER), slow and item.nodeid.startswith(LAST)

    items.sort(key=place)
