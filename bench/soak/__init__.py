"""The long run inside a memory cgroup: ingest, then turn after turn through the running app's HTTP interface.

``python -m bench.soak --limit 1GiB --turns 1000`` starts ``app.py`` in a cgroup of that size, without swap, uploads
text, asks, and mixes in uploads and session changes; it prints kernel kills, failed turns and the growth of RSS.
``--arm plain`` runs the same questions on the plain stack, ``--clients 50 --minutes 10`` asks from many sides at once,
and ``python -m bench.soak.plot`` draws the curves of several runs. It needs root, for the cgroup.
"""
