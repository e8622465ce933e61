"""What a language model forgets while it learns to reason in continuous space, measured."""

__version__ = "0.2.0"
