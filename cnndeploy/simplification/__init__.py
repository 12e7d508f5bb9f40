"""Simplification: a network that computes the same function with less work, by rewrites exact in real numbers.

A rewrite is one file here. It makes one change to a traced network, or none. Its docstring says what the graph must
be like before (Requires) and is like afterwards (Ensures), and why that computes the same (Proof). New weights are
computed in float64 and rounded once, at the end; one thread computes them, so that they do not depend on the number of
threads. A layer that takes over the work of several has the name of the last one, whose output it computes.
"""

from cnndeploy.simplification._trace import Rewrite as Rewrite, copied as copied, trace as trace
from cnndeploy.simplification.fold_preprocessing import fold_preprocessing as fold_preprocessing
from cnndeploy.simplification.simplify import simplify as simplify
