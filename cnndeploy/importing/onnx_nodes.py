"""Nodes and names of an ONNX graph: put in order, removed and renamed, also in the graphs inside it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import onnx


def sort(graph: onnx.GraphProto) -> None:
    """Let each node come after those that it takes from, as ONNX wants it and ONNX Runtime's converters do not."""
    nodes, ordered, done = list(graph.node), list[int](), set[int]()
    producers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    for number in range(len(nodes)):
        waiting = [number]
        while waiting:
            first = {producers[name] for name in _used(nodes[waiting[-1]]) if name in producers} - done
            if first - {waiting[-1]}:
                waiting += sorted(first)
            elif (current := waiting.pop()) not in done:
                done.add(current)
                ordered.append(current)
    if ordered != sorted(ordered):
        _keep_nodes(graph, [nodes[number] for number in ordered])


def hoist_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of constant nodes, in which some exporters keep the weights."""
    kept = list[onnx.NodeProto]()
    for node in graph.node:
        value = next((each.t for each in node.attribute if each.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        _keep_nodes(graph, kept)


def prune(graph: onnx.GraphProto) -> None:
    """Remove what no output needs."""
    needed = {value.name for value in graph.output}
    kept = list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed |= set(_used(node))
    if len(kept) < len(graph.node):
        _keep_nodes(graph, kept[::-1])
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in needed:
            del graph.initializer[place]


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value where it is made and wherever it is taken, in inner graphs too."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for inner in _inner(node):
            rename(inner, old, new)
            for value in inner.output:
                value.name = new if value.name == old else value.name


def unused(graph: onnx.GraphProto, name: str) -> str:
    """Return the name, with a number behind it if the graph has it already."""
    known = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    known |= {one for node in graph.node for one in (*_used(node), *node.output)}
    free, number = name, 2
    while free in known:
        free, number = f"{name}_{number}", number + 1
    return free


def _keep_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Leave only these nodes, in this order; to remove one after the other takes the square of their number."""
    kept = copy.deepcopy(list(nodes))
    del graph.node[:]
    graph.node.extend(kept)


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node takes, also those that its inner graphs take from outside."""
    yield from node.input
    for inner in _inner(node):
        yield from (value.name for value in inner.output)
        for each in inner.node:
            yield from _used(each)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
