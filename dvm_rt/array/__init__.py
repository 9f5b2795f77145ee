"""The Python face: arrays that compute when a value is needed, and functions that are planned once for all shapes.

    array      Array: operators record nodes, values are fetched
    functions  the Array API names, made from the operator table
    creation   arrays made from numbers and sizes: full, arange, eye, tril, ..
    movement   joined, padded, sorted, picked and put by index, sets
    einsum     einsum, tensordot, outer, vecdot
    windows    convolution and pooling
    random     random numbers that are functions of a key
    session    what belongs to one runtime: the stream, plans by structure, counters; the flush
    quick      what runs a graph before it has a plan, operator by operator
    tracing    symbolic arguments, captured arrays
    function   @function
    stacked    @stacked: functions whose calls wait for each other and are few launches
    kernel     @kernel: sections written by hand
    explain    explain, das, dump

Imports everything below it, and is imported by the frontends."""
