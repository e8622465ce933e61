"""What is measured beside the rows of R where an experiment asks for it, one file a diagnostic.

    diagnostics:
      - interventions                     # the name of a file in this folder
      - {name: plasticity, steps: 40}     # with its settings
      - {name: readout, enabled: false}   # switched off: `diagnostics.readout.enabled=false` on the command line

A diagnostic looks at a method as it is after a row was measured (``Subject``) and returns plain numbers. It leaves no trace: the
weights, the random numbers and every other number of the run are what they are without it. It may also look inside a turn, at
optimiser steps that it names (``moments``). What it found and how long it took stand in the run folder
(``diagnostics/<name>_<row>.json``, and ``<name>_<row>_step<step>.json`` from inside the turn that led to a row) and in
``result.json``.
"""
