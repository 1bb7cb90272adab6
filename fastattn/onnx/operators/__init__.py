"""The operators: prepare(node) is what computes a node, made once from what is known of it."""

from fastattn.onnx.graph import Call, Node
from fastattn.onnx.operators import arrays, attention, control, linear, microsoft, recurrent, rows
from fastattn.onnx.operators.reference import reference

# A maker may return None: it has not this form of the operator.
MAKERS = {
    **arrays.MAKERS,
    **attention.MAKERS,
    **control.MAKERS,
    **linear.MAKERS,
    **microsoft.MAKERS,
    **recurrent.MAKERS,
    **rows.MAKERS,
}


def prepare(node: Node) -> Call:
    """The function of the inputs of a node that gives its output, or a tuple where there are several."""
    make = MAKERS.get((node.domain, node.op))
    call = None if make is None else make(node)
    return reference(node) if call is None else call
