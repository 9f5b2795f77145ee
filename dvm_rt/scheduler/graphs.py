"""Graphs that somebody wants planned: each waits in line or is with one worker. Planning is pure, so it may be done twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dvm_rt.scheduler.book import Worker, hold


@dataclass(slots=True)
class GraphRequest:
    worker: int | None = None  # None: in line
    deaths: int = 0  # of workers that were planning it


class Graphs:
    def __init__(self) -> None:
        self.requests: dict[int, GraphRequest] = {}
        self.line: deque[int] = deque()

    def __contains__(self, graph: object) -> bool:
        return graph in self.requests

    def __len__(self) -> int:
        return len(self.requests)

    def want(self, graph: int) -> None:
        self.requests[graph] = GraphRequest()
        self.line.append(graph)

    def give(self, worker: int) -> int:
        """The next in line, from now on with this worker."""
        graph = self.line.popleft()
        self.requests[graph].worker = worker
        return graph

    def lost(self, graph: int) -> int:
        """Its worker died: it is first in line. Returns how many have died over it; 0 if nobody wants it any more."""
        request = self.requests.get(graph)
        if request is None:
            return 0
        request.worker, request.deaths = None, request.deaths + 1
        self.line.appendleft(graph)
        return request.deaths

    def forget(self, graph: int) -> None:
        if self.requests.pop(graph).worker is None:
            self.line.remove(graph)

    def validate(self, workers: Iterable[Worker]) -> None:
        held = {(w.graph, w.number) for w in workers if w.graph is not None}
        waiting = [g for g, r in self.requests.items() if r.worker is None]
        hold(sorted(self.line) == sorted(waiting), "graphs in line {}, waiting {}", list(self.line), waiting)
        for graph, request in self.requests.items():
            hold(request.worker is None or (graph, request.worker) in held, "graph {} is held by nobody", graph)
