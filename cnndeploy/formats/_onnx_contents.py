"""What is in an ONNX model, found in one pass, and refused if no classifier has so much of it.

A file of a few hundred bytes can ask for more memory than any machine has: by a constant that is the size of a value,
by functions that call each other, by graphs in graphs. What a constant says is checked here. A size that the graph
computes is not known before it runs.

Source: field numbers from onnx.proto; inputs and attributes from ONNX's documentation, Operators.md.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cnndeploy.formats._protobuf import Message, fields, message_of, messages_of, number_of, text_of, varint
from cnndeploy.limits import BeyondLimit, require_within

GRAPH, _FUNCTION = 7, 25  # of a model
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_NAME = 1, 8

_MOST_PARTS = 50_000  # nodes and constants; the largest networks have a few thousand
_DEEPEST = 30  # protobuf takes 100 messages in each other, and a graph in a graph is three
_MOST_NUMBERS = 2**28  # of one value: 1 GiB in float32
_LONGEST = 64  # axes, and so numbers of a constant that is a size
# Which input is the size of what is returned; of Resize and Upsample also factors of it.
_SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Resize": (1, 2, 3), "Upsample": (1,)}
_SIZE_ATTRIBUTES = ("shape", "output_shape")
# Numbers in a TensorProto: of each data type the field, and how raw_data is read.
_NUMBERS = {1: (4, "f"), 6: (5, "i"), 7: (7, "q"), 11: (10, "d")}
_TENSOR_RAW = 9
_Function = tuple[str, str]  # domain and name


@dataclass(slots=True)
class Contents:
    """The operators of all nodes, also of inner graphs and functions, and every TensorProto."""

    operators: Counter[str] = field(default_factory=Counter)
    tensors: list[Message] = field(default_factory=list)
    nodes: int = 0

    def add(self, tensors: Iterable[Message], node: Node | None = None) -> None:
        """Note constants and a node; raise BeyondLimit if there are too many."""
        self.tensors += tensors
        if node is not None:
            self.operators[node.operator[1]] += 1
            self.nodes += 1
        parts = self.nodes + len(self.tensors)
        if parts > _MOST_PARTS:
            require_within(parts, _MOST_PARTS, f"at least {parts:,} nodes and constants")


@dataclass(slots=True)
class Node:
    """A node: its operator, with the domain, its inputs, outputs and attributes."""

    operator: _Function
    inputs: list[str]
    outputs: list[str]
    attributes: list[Message]


def contents_of(model: Message) -> Contents:
    """Return what is in a model; raise BeyondLimit if it is too much, or would become too much."""
    contents = Contents()
    calls: dict[_Function | None, Counter[_Function]] = {None: Counter()}
    waiting: list[tuple[Message, int, _Function | None, int]] = []  # body, field of nodes, function, depth
    for number, value in fields(model):
        if number == GRAPH and not isinstance(value, int):
            waiting.append((value, _GRAPH_NODE, None, 0))
        elif number == _FUNCTION and not isinstance(value, int):
            called = text_of(value, _FUNCTION_DOMAIN), text_of(value, _FUNCTION_NAME)
            calls[called] = Counter()
            waiting.append((value, _FUNCTION_NODE, called, 0))
    while waiting:
        body, node_field, function, depth = waiting.pop()
        require_within(depth, _DEEPEST, f"graphs {depth} deep in each other")
        for node in _body(body, node_field, contents):
            calls[function][node.operator] += 1
            for attribute in node.attributes:
                inner = messages_of(attribute, *_ATTRIBUTE_GRAPHS)
                waiting += ((graph, _GRAPH_NODE, function, depth + 1) for graph in inner)
    if len(calls) > 1:
        _check_calls(calls)
    return contents


def _body(body: Message, node_field: int, contents: Contents) -> Iterator[Node]:
    """Yield the nodes of a graph or function, note what is in it, and check the sizes that its constants say."""
    constants, sized = dict[str, Message](), list[Node]()
    for number, value in fields(body):
        if isinstance(value, int):
            continue
        if number == node_field:
            node = node_of(value)
            tensors = list(_tensors(node))
            contents.add(tensors, node)
            if node.operator[1] == "Constant" and len(tensors) == 1:
                constants.update(dict.fromkeys(node.outputs, tensors[0]))
            sized.append(node)
            yield node
        elif node_field == _GRAPH_NODE and number == _GRAPH_INITIALIZER:
            contents.add([value])
            constants[text_of(value, _TENSOR_NAME)] = value
        elif node_field == _GRAPH_NODE and number == _GRAPH_SPARSE:
            contents.add(messages_of(value, 1, 2))
    for node in sized:
        _check_size(node, constants)


def node_of(message: Message) -> Node:
    """Read a NodeProto."""
    names: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: [], _NODE_OP_TYPE: [""], _NODE_DOMAIN: [""]}
    attributes = list[Message]()
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number in names:
            names[number].append(bytes(value).decode())
        elif number == _NODE_ATTRIBUTE:
            attributes.append(value)
    operator = names[_NODE_DOMAIN][-1], names[_NODE_OP_TYPE][-1]
    return Node(operator, names[_NODE_INPUT], names[_NODE_OUTPUT], attributes)


def _tensors(node: Node) -> Iterator[Message]:
    """Yield every TensorProto in a node's attributes, the values and indices of sparse ones too."""
    for attribute in node.attributes:
        for number, value in fields(attribute):
            if number in _ATTRIBUTE_TENSORS and not isinstance(value, int):
                yield value
            elif number in _ATTRIBUTE_SPARSE and not isinstance(value, int):
                yield from messages_of(value, 1, 2)


def _check_calls(calls: Mapping[_Function | None, Counter[_Function]]) -> None:
    """Raise ValueError if functions call each other in a circle, or have too many nodes once they are put in."""
    sizes = dict[_Function | None, int]()

    def size(function: _Function | None, depth: int) -> int:
        if depth > _DEEPEST:
            raise BeyondLimit(
                f"its functions call each other in a circle, or more than {_DEEPEST} deep; inline them before"
            )
        if function not in sizes:
            sizes[function] = sum(
                count * (size(called, depth + 1) if called in calls else 1)
                for called, count in calls[function].items()
            )
        return sizes[function]

    nodes = size(None, 0)
    require_within(nodes, _MOST_PARTS, f"functions of {nodes:,} nodes in all")


def _check_size(node: Node, constants: Mapping[str, Message]) -> None:
    """Raise BeyondLimit if constants say that a node returns too many numbers for one value."""
    operator = node.operator[1]
    places = _SIZES.get(operator, ())
    given = {
        place: _numbers(constants[node.inputs[place]])
        for place in range(len(node.inputs))
        if (place in places or operator in ("Range", "OneHot", "Pad")) and node.inputs[place] in constants
    }
    sizes = [_product(given[place]) for place in places if place in given]
    if operator == "Range" and [len(values) for values in given.values()] == [1, 1, 1]:
        (start,), (end,), (step,) = given.values()
        sizes.append(math.floor((end - start) / step) if step else 0)
    if operator == "OneHot":
        sizes += map(math.floor, given.get(1, ()))
    if operator == "Pad":
        sizes.append(_padded(given.get(1, [])))
    for attribute in node.attributes:
        name = text_of(attribute, 1)
        if name == "pads":
            sizes.append(_padded(whole_numbers(attribute, 8)))
        elif name in _SIZE_ATTRIBUTES:
            sizes.append(_product(whole_numbers(attribute, 8)))
    if sizes:
        size = max(sizes)
        require_within(size, _MOST_NUMBERS, f"a node {operator} that returns at least {size:,} numbers")


def _product(lengths: Iterable[float]) -> int:
    """Return how many numbers a value of these lengths has, or one that is resized by these factors, at least."""
    return math.prod(max(1, math.floor(length)) for length in lengths)


def _padded(pads: list[float]) -> int:
    """Return how many numbers one becomes that is padded so."""
    half = len(pads) // 2
    sides = zip(pads[:half], pads[half:], strict=False)
    return _product(1 + before + after for before, after in sides)


def _numbers(tensor: Message) -> list[float]:
    """Return the numbers of a constant that may be a size; none if they are many, or not finite."""
    if math.prod(whole_numbers(tensor, _TENSOR_DIMS)) > _LONGEST:
        return []
    number, code = _NUMBERS.get(number_of(tensor, 2) or 0, (0, ""))
    raw = message_of(tensor, _TENSOR_RAW)
    if not code:
        return []
    values: list[float] = []
    if raw:
        values += struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
    elif code in "iq":
        values += whole_numbers(tensor, number)
    else:
        for value in messages_of(tensor, number):
            values += struct.unpack(f"<{len(value) // struct.calcsize(code)}{code}", value)
    return values if len(values) <= _LONGEST and all(map(math.isfinite, values)) else []


def whole_numbers(message: Message, wanted: int) -> list[float]:
    """Return a repeated field of int64, packed or not; of very many only the first."""
    values = list[float]()
    for number, value in fields(message):
        if number != wanted or len(values) > _LONGEST:
            continue
        if isinstance(value, int):
            values.append(_signed(value))
            continue
        position = 0
        while position < len(value) and len(values) <= _LONGEST:
            one, position = varint(value, position)
            values.append(_signed(one))
    return values


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
