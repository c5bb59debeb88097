"""metafast beside its rivals: the same gradients, checked, then timed in turns in one process.

``python -m benchmarks`` prints the table and draws the picture; ``python -m pytest benchmarks`` runs the same rows
under pytest-benchmark. A workload is an entry of :mod:`benchmarks.workloads`, a rival a module of
:mod:`benchmarks.rivals`.
"""
