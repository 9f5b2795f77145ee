"""Models whose path and shapes depend on data, in plain Python over dvm.function: see __main__."""
