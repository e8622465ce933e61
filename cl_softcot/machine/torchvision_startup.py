"""Gives operators of a torchvision whose compiled library does not fit torch the schemas that its own import asks for.

This file stands on its own: where an environment needs it, ``machine.torchvision`` puts a copy beside torchvision, and a
``.pth`` file there starts it with Python. It costs nothing before torchvision is imported, and nothing where its library loads.
"""

import sys

# What torchvision registers whether its library was loaded or not.
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class Operators:
    """Looks for no module: it is asked before torchvision's registrations are imported, and then sees to the schemas."""

    libraries: list = []  # kept alive: the schemas are withdrawn when the Library object dies

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations" and not self.libraries:
            from torchvision import extension  # which has loaded the library, or has not

            if not extension._has_ops():
                import torch

                library = torch.library.Library("torchvision", "FRAGMENT")
                self.libraries.append(library)
                for operator in OPERATORS:
                    library.define(operator + SCHEMA)
        return None


def start():
    """Once a process, however many copies of this file there are."""
    if not any(type(finder).__name__ == Operators.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Operators())
