"""Where a run's numbers are sent. The run folder is the truth; everything here is a view of it.

`event_log` writes each number to the run folder first, `mlflow` sends the log on, `console` shows the work
and the final table, `figures` draws, `results` turns result files into the table's rows, and `conclusion`
puts into a sentence what they support. Nothing here knows a model or a trainer.
"""
