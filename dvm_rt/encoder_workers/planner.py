"""Graph bytes to plan bytes: what a worker is asked for when a plan is not known yet."""

from __future__ import annotations

from dvm_rt import wire
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Graph


def plan_graph(body: bytes) -> bytes:
    """The plan of a packed `Graph.to_wire()`. Raises what the graph or the fuser finds wrong."""
    return fuse(Graph.from_wire(wire.unpack_tree(body))).plan.to_bytes()
