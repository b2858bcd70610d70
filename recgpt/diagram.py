"""The diagram of the graphs, drawn from the compiled graphs themselves (Mermaid)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langgraph.pregel import Pregel

from graphs.recommend import graph


def mermaid() -> str:
    """The graph `recommend` and the graphs that its nodes are, dotted where a router decides."""
    return "\n".join(["graph TD", *_block("recommend", graph), *_inside(graph)]) + "\n"


def _inside(outer: Pregel[Any, Any, Any, Any]) -> Iterator[str]:
    for node, inner in outer.get_subgraphs():
        name = str(inner.name)
        yield from _block(name, inner)  # type: ignore[arg-type]
        yield f"  recommend.{node} ==> {name}"


def _block(name: str, inner: Pregel[Any, Any, Any, Any]) -> Iterator[str]:
    yield f"  subgraph {name}"
    for edge in sorted(inner.get_graph().edges, key=lambda edge: (edge.source, edge.target)):
        if not edge.source.startswith("__") and not edge.target.startswith("__"):
            arrow = "-.->" if edge.conditional else "-->"
            yield f"    {name}.{edge.source}[{edge.source}] {arrow} {name}.{edge.target}[{edge.target}]"
    yield "  end"
