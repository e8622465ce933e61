"""The report of finished runs: one page, and the same as Markdown, figures, tables and data.

studies.py   run folders as studies: what is finished, what is comparable, who is compared
content.py   what a report is made of; every number knows which runs it was made from
measures.py  the numbers of one run, and what several runs say together
drawing.py   figures; the only file of this room that imports matplotlib
writing.py   HTML, Markdown, LaTeX, CSV and JSON
versus.py    what changed between two studies
capability.py  the same methods from several base models
sections/    one file a section, found by itself
"""
