"""From graph to plan: what runs together, and the plan that an encoder turns into programs.

    views      where elements lie, which element is needed: both affine, over symbolic sizes
    patterns   rewrites that change arithmetic: attention
    projections  products of the same rows with several constant matrices, as one
    segments   cuts that no kernel could span: equal segments are planned once
    legalise   the graph in the form that kernels need
    words      which instructions an operator is, for its dtype
groups     which operators share a kernel
    memory     workspace slots
    kernels    groups written into a plan
    reasons    why each edge is fused or not
    fuser      all of it: fuse(graph)
    plan       the plan itself: records, bytes, evaluation"""

from dvm_rt.fusion.fuser import Fused, Report, fuse

__all__ = ["Fused", "Report", "fuse"]
