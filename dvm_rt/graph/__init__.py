"""Graphs: what is to be computed, for all shapes at once.

    symbols     symbolic dimensions and the facts that are known about them
    attributes  values of nodes beside their inputs; parts, the graphs in a graph
    shapes      shape rules: broadcasting, reshaping, indexing, reductions, products
    operators   THE operator table, one row an operator
    movement    its rows that a host function does: sorting, searching, sets, scatters
    windows     its rows for convolution and pooling
    composites  operators that are written with other operators
    stacking    which graphs may be run for several calls at once
    graph       nodes, graphs, their wire form and their meaning in NumPy

Knows nothing of kernels, tensors, processes."""
