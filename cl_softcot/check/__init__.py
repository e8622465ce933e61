"""Whether a plug-in keeps its contract: the same checks over ours (in the tests) and over anybody's own.

result.py   what a check says        bench.py   the embedded models, and a few steps of training
task.py reasoning.py strategy.py diagnostic.py metric.py      the contract of a kind, a function a rule
"""
