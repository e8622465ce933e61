"""Where a run's numbers are sent. The run folder is the truth; everything here is a view of it.

`results.events` writes each number to the run folder first. `mlflow` sends that log on, `sender` does it while runs go on, and
`store` is where to. `console` shows the work and the final table, `conclusion` puts into a sentence what the numbers support,
`figures` draws, and `predictions` shows texts before and after. Nothing here knows a model or a trainer.
"""
