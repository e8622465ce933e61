"""What a run leaves behind: read, summed up, kept. Needs no torch.

reading.py   result files: finding them, reading them, grouping them by method
events.py    the log that a run writes first, before any tracker
headline.py  which number of a result is the headline of its kind
outcomes.py  right and wrong answers, question by question
colors.py    a colour for each method
kept.py      kept results, packed into one file a study; reads runs from there or from their folders
keeping.py   packs and unpacks them: `python -m cl_softcot.results keep | unpack`
"""
