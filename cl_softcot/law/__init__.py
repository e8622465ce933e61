"""Is forgetting a function of drift? Points, fits and the figure; and a small study in which the answer is measured on purpose.

points.py   tidy points from finished runs
fit.py      the analysis, fixed before the runs that it judges
figure.py   the picture of it
pictures/   the controlled study of `python -m cl_softcot.law`
"""
