"""Steps and reading in C, for small weights on x86-64 CPUs with AVX2.

torch runs a step as some 600 small operations, and each costs more than its work when it is one row. ``kernels.c`` does
a step in one call, and a part of a prompt in one call a layer. Where they were not built, or a model's widths don't
suit them, torch's own products are used (``decoder``, ``quantized``, ``packed``); answers differ by rounding only.

``python -m assistant.inference.native`` builds them; ``build`` says how. Nothing here is imported with the package:
building needs no torch.
"""
