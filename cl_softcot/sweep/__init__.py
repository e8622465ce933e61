"""Hyperparameter sweeps: many runs of one experiment, chosen by Optuna, by any number of workers, on any machine.

    config.py      the sweep file as typed models; what is wrong with it, before anything is launched
    space.py       distributions of dotted keys <-> the `key=value` of the command line
    objectives.py  numbers of a result by their names: objectives, constraints, values for pruning
    storage.py     PostgreSQL, SQLite or a journal file; patience with a database that is away
    folder.py      the sweep's folder and its searches: made, found, refused where they are another sweep's
    trials.py      the trials in the storage: taking, retrying, ending one
    alive.py       which workers live
    samplers.py    Optuna's samplers and pruners
    worker.py      the loop that every launcher starts
    launchers/     in this process, local processes, Slurm
    finish.py      the winner's score on the test split, once
    status.py      how it stands; report.py: the HTML page
    commands.py    what the commands share

The folder of a sweep, on a disk that all workers see:

    sweeps/<name>/  sweep.yaml  sweep.json  sweep.db  logs/  trials/<n>/  test/<n>/  winner.json  report.html

A trial's folder is an experiment's folder, and holds all that a retry needs to go on. The storage only says who does what:
a trial is judged by the results on the disk.
"""
