"""How fast training and evaluation are, against plain references that give the same numbers: ``python -m benchmarks``."""
