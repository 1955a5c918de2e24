"""Scripts that compare ways of doing the same work in one run; each writes a dated table to benchmarks/results."""
