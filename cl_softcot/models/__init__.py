"""Backbone and assistant, how examples become token ids, decoding, and the projector between the two widths."""

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()  # first: a mismatching torchvision breaks the imports of transformers below
