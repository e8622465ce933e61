"""What several runs say: aggregates with intervals, and whether one method is better than another.

Three kinds of questions, each with its own functions:

* **How good is a method over its runs?** :func:`aggregate.aggregate` (interquartile mean or mean),
  :func:`performance_profile` and :func:`probability_of_improvement` resample whole runs inside strata, as rliable does
  (Agarwal et al. 2021, arXiv 2108.13264). rliable itself is not used: its last release pins a version of `arch` that does not
  import beside pandas 3. The tests hold its values.
* **Do two methods differ?** :func:`paired_difference` on scores of the same questions in runs of the same seed and order, with
  standard errors clustered by question and by run (Miller 2024, arXiv 2411.00640; Cameron, Gelbach & Miller 2011,
  doi 10.1198/jbes.2010.07136), in closed form or by a cluster bootstrap.
* **Which of many differences are shown?** :func:`compare`: all pairs, p-values corrected (:func:`holm`,
  :func:`benjamini_hochberg`), a verdict in words, and the smallest difference that these data could have shown.

With one run a method, only the spread over test questions is known, not that over training seeds: results say so in ``covers``
and ``note``. With two or three runs intervals are Student's, which makes them as wide as so little data deserve. Intervals of
one accuracy of one run are in :mod:`cl_softcot.metrics.intervals`.
"""
