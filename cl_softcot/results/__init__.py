"""What a run leaves behind: read, summed up, kept. Needs no torch.

record.py    result.json as one model: written, read and documented from there
folder.py    every file name in the folders of runs, experiments and reports
reading.py   finding and reading finished runs, grouping them by method; as a table for pandas (table.py)
events.py    the log that a run writes first, before any tracker
headline.py  which number of a result is the headline of its kind
outcomes.py  right and wrong answers, question by question
unanswered.py  how many of the answers behind a number hold none
two_readings.py  the strict and the flexible reading of the answers, in records
own_metrics.py  metrics of an experiment's own, in records
colors.py    a colour for each method
kept.py      kept results, packed into one file a study; reads runs from there or from their folders
keeping.py   packs and unpacks them: `python -m cl_softcot.results keep | unpack`
"""

from cl_softcot.results.reading import Results, load_results
from cl_softcot.results.record import RunRecord

__all__ = ["Results", "RunRecord", "load_results"]
