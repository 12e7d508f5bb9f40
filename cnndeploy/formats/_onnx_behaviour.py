"""What a graph does that its operators' names do not say: it trains, or its outputs are probabilities.

Source: ONNX's documentation, Operators.md; field numbers from onnx.proto.
"""

from __future__ import annotations

from cnndeploy.formats._onnx_contents import Node, node_of, whole_numbers
from cnndeploy.formats._protobuf import Message, message_of, messages_of, number_of, text_of

_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of a graph
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_INT32 = 8, 9, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
# They pass numbers on, perhaps in another form.
_PASS = ("Identity", "Cast", "Flatten", "Squeeze", "Reshape", "Dropout")


def weights_of(graph: Message) -> set[str]:
    """Return the names of the constants of a graph, which before IR 4 are among its inputs too."""
    return {text_of(tensor, _TENSOR_NAME) for tensor in messages_of(graph, _INITIALIZER)}


def operators_in_training(graph: Message) -> list[str]:
    """Return the operators that are in training mode, by which an image's result depends on others, or on chance."""
    nodes = [node_of(message) for message in messages_of(graph, _NODE)]
    flags = {
        text_of(tensor, _TENSOR_NAME): tensor
        for tensor in messages_of(graph, _INITIALIZER)
        if number_of(tensor, 2) == 9  # BOOL
    }
    for node in nodes:
        if node.operator[1] == "Constant" and (value := _attribute(node, "value")) is not None:
            flags[node.outputs[0]] = message_of(value, _ATTRIBUTE_TENSOR)
    return sorted({node.operator[1] for node in nodes if _is_training(node, flags)})


def _is_training(node: Node, flags: dict[str, Message]) -> bool:
    if node.operator[1] == "BatchNormalization":
        mode = _attribute(node, "training_mode")
        # before opset 14 the number of outputs says it
        return len(node.outputs) > 1 if mode is None else bool(number_of(mode, _ATTRIBUTE_INT))
    if node.operator[1] != "Dropout" or len(node.inputs) < 3 or node.inputs[2] not in flags:
        return False
    flag = flags[node.inputs[2]]
    return any(bytes(message_of(flag, _TENSOR_RAW))) or any(whole_numbers(flag, _TENSOR_INT32))


def probabilities_of(graph: Message) -> list[str]:
    """Return the names of the outputs that are a softmax over the classes, the last of two axes."""
    makers = {name: node for node in map(node_of, messages_of(graph, _NODE)) for name in node.outputs if name}
    names = [text_of(value, 1) for value in messages_of(graph, _OUTPUT)]
    return [name for name in names if _is_softmax(name, makers)]


def _is_softmax(name: str, makers: dict[str, Node]) -> bool:
    seen = set[str]()
    while name in makers and name not in seen:
        seen.add(name)
        node = makers[name]
        if node.operator[1] == "Softmax":
            axis = _attribute(node, "axis")
            return axis is None or number_of(axis, _ATTRIBUTE_INT) in (1, 2**64 - 1)
        if node.operator[1] not in _PASS or not node.inputs:
            return False
        name = node.inputs[0]
    return False


def _attribute(node: Node, name: str) -> Message | None:
    return next((one for one in node.attributes if text_of(one, _ATTRIBUTE_NAME) == name), None)
