"""A strategy whose trials stay in their middle for as long as a test needs them there: ``held:Held`` in a sweep's experiment.

Without it a test would have to look often enough to catch a small trial between its first experience and its end, and on a busy
machine the trials are over before it looks.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from cl_softcot.machine.lanes import step_aside
from strategies.frozen_backbone import FrozenBackbone

FILE = "CL_SOFTCOT_TEST_HOLD"  # of the environment: while this file exists, trials wait behind their first experience


class Held(FrozenBackbone):
    """Learns as its parent does."""

    def learn(self, turn: Any, loop: Any) -> Any:
        file = os.environ.get(FILE)
        while file and turn.index and Path(file).exists() and not _taken_over():
            time.sleep(0.05)
            step_aside()
        return loop(turn)


def _taken_over() -> bool:
    """The heart of a worker stops by itself when it hears that its trial is another's."""
    return not any(thread.name == "heartbeat" for thread in threading.enumerate())
