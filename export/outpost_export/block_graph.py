"""A graph whose products have their weights in blocks of 4 or 8 bits (``MatMulNBits``)."""

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from outpost_export import graph
from outpost_export.blocks import quantize_bits
from outpost_export.grid import Grid


def quantize(model: ModelProto, grid: Grid, *, bits: int, block_size: int) -> int:
    """Quantize the weights of all products with matrices; inputs are quantized in the run.

    Nodes and tensors are named as ONNX Runtime's own quantizer names them.

    Args:
        bits: 4 or 8.

    Returns:
        Weights that the grid's scales do not reach.
    """
    graph.import_microsoft(model)
    matrices = {t.name: t for t in model.graph.initializer if len(t.dims) == 2}  # noqa: PLR2004 - rows, columns
    clipped = 0
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and node.input[1] in matrices:
            name = node.input[1]
            weights = np.ascontiguousarray(numpy_helper.to_array(matrices[name]).T)
            shape = len(weights), -(-weights.shape[1] // block_size)
            scales = grid.scales(f"{name}_scales", shape)
            quantized = quantize_bits(weights, bits, block_size, scales)
            values = quantized.values.reshape(*shape, -1)
            graph.add(model, f"{name}_Q{bits}", values)
            graph.add(model, f"{name}_scales", quantized.scales)
            graph.replace(model, node, [_product(node, weights.shape, bits, block_size)])
            clipped += quantized.clipped
    graph.drop_unread(model)
    return clipped


def _product(node: NodeProto, shape: tuple[int, ...], bits: int, block_size: int) -> NodeProto:
    inputs, name = node.input[0], node.input[1]
    outputs, channels = shape
    return helper.make_node(
        "MatMulNBits",
        [inputs, f"{name}_Q{bits}", f"{name}_scales"],
        list(node.output),
        name=f"{node.name}_Q{bits}",
        domain=graph.MICROSOFT,
        K=channels,
        N=outputs,
        bits=bits,
        block_size=block_size,
        accuracy_level=4,
    )
