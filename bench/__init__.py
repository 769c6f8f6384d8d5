"""Benchmarks: ``python -m bench.NAME --data DIR`` prints ours beside its peers, from one run.

Each takes ``--json FILE`` for one object a line; ``report`` has what they share.
"""
