"""The training loop and all that belongs to it. The only room that imports avalanche."""
