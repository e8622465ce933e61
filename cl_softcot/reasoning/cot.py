"""Written steps (chain of thought, arXiv 2201.11903): the written control of every continuous method."""

from __future__ import annotations

from cl_softcot.reasoning.base import Reasoning


class Cot(Reasoning):
    """Reads the question, writes all steps, then the answer."""
