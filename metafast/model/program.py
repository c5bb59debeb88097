"""What the model and the loss are: a flat list of nodes that a kernel can execute.

A :class:`Program` is the only thing the native engine knows about a model. It is a value (frozen, hashable,
comparable), it has a readable text form, and it holds shapes of *one example*: the engine adds the axes of tasks and
examples itself. Value 0 is the model's input; the last node writes the model's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from metafast.model.several import Several

Shape = tuple[int, ...]
#: ``adapted``: moved by the inner loop, and meta-learnt. ``meta``: meta-learnt only (ANIL's body).
#: ``constant``: neither (``requires_grad=False``, and the running statistics of an evaluating BatchNorm).
Role = Literal["adapted", "meta", "constant"]
Attributes = tuple[tuple[str, float], ...]

#: Marks an optional parameter that a node does not have (a convolution without bias).
ABSENT = -1


@dataclass(frozen=True)
class Parameter:
    name: str
    shape: Shape
    role: Role

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One primitive applied to values; ``parameters`` are indices into the Program's list, or ABSENT.

    ============== ========================================= =======================================================
    op             parameters                                attributes
    ============== ========================================= =======================================================
    linear         weight, bias?
    conv2d         weight, bias?                             stride_h stride_w pad_h pad_w dilation_h dilation_w
                                                             (in groups, as many as the weight's shape says)
    conv_transpose2d weight, bias?                           as conv2d
    batch_norm     weight?, bias?, running_mean?, running_var?  eps training
    normalise      weight?, bias?                            eps groups centred (of an example: each group of channels
                                                             of a row, or of an image)
    (pointwise functions)                                    as csrc/formulas/functions/list.h lists them
    softmax, log_softmax                                     (over the channels)
    max_pool2d                                               kernel_h kernel_w stride_h stride_w pad_h pad_w
                                                             dilation_h dilation_w
    avg_pool2d                                               kernel_h kernel_w stride_h stride_w pad_h pad_w
                                                             count_include_pad
    adaptive_avg_pool2d                                      (its output shape says everything)
    flatten
    dropout                                                  p, number, each
    add, subtract, multiply, divide, maximum, minimum, keep, hide, at_least, binary_cross_entropy
                                                             (two inputs, which broadcast)
    matmul         (two inputs)                              batches transposed_b
    sparse_map     (one to four inputs)                      per_example; its ``table`` says everything else
    parameter      weight                                    its ``table`` says which elements
    embedding      table?                                    padding_idx, whose row has no gradient
    ============== ========================================= =======================================================

    A ``sparse_map`` is a static linear map. ``table`` has, for each element of the output in row-major order, equally
    many elements of the inputs, which are numbered one input behind the other, or -1 for none; ``factors`` are their
    factors, 1 where it is empty. The output is the sum. ``parameter`` is the same of a parameter. ``says`` is what
    torch calls it. An ``embedding`` writes rows of a parameter, whose numbers its input holds; without one, rows of the
    identity.

    A ``dropout`` is ``number`` so-and-so of the model's random nodes, which keeps its draws apart from theirs; ``each``
    so many elements, one behind another in row-major order, are dropped together.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    parameters: tuple[int, ...] = ()
    attributes: Attributes = ()
    where: str = ""
    table: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    says: str = ""


#: Nodes that draw random numbers.
RANDOM = frozenset({"dropout"})


def shared_values(nodes: Iterable[Node]) -> frozenset[int]:
    """The values without an axis of examples: parameters, and what is computed from nothing else."""
    shared: set[int] = set()
    for node in nodes:
        if shared.issuperset(node.inputs) and "per_example" not in dict(node.attributes):
            shared.add(node.output)
    return frozenset(shared)


@dataclass(frozen=True)
class Loss:
    """A loss by name, with its settings, as :mod:`metafast.losses` lists them.

    ``reduction`` makes the loss of a task of its N examples' losses l and weights w, 1 where none are given:
    ``weighted_mean`` is sum(w l) / sum(w m), ``mean`` sum(w l) / sum(m), ``sum`` sum(w l). ``elements`` says what the
    loss of an example is of those of its output's elements, where the loss has a value for each. m is 1, but for losses
    of classes: the mean or sum over the example's targets of the ``class_weights`` of their classes, 1 where none are
    given and 0 for the class that is ignored.
    """

    kind: str
    attributes: Attributes = ()
    reduction: str = "weighted_mean"
    elements: Literal["mean", "sum"] = "mean"
    class_weights: tuple[float, ...] = ()

    @property
    def ignored(self) -> int | None:
        """The class that counts nothing."""
        return next((int(value) for name, value in self.attributes if name == "ignore_index"), None)


@dataclass(frozen=True)
class Program:
    values: tuple[Shape, ...]
    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    loss: Loss | None
    #: What torch's shape of an example's output is, if its value has another form of as many elements.
    shape: Shape | None = None
    #: What the model returns, if that is several tensors, or has a loss behind it.
    outputs: Several | None = None

    @property
    def output_shape(self) -> Shape:
        return self.values[self.output] if self.shape is None else self.shape

    @property
    def output(self) -> int:
        return self.nodes[-1].output if self.nodes else 0

    @cached_property
    def adapted(self) -> tuple[int, ...]:
        """Indices of the parameters that the inner loop moves, in order."""
        return tuple(i for i, p in enumerate(self.parameters) if p.role == "adapted")

    @cached_property
    def random(self) -> bool:
        """Whether a node draws random numbers."""
        return any(node.op in RANDOM for node in self.nodes)

    @cached_property
    def learnt(self) -> tuple[int, ...]:
        """Indices of the parameters that receive a meta-gradient, in order."""
        return tuple(i for i, p in enumerate(self.parameters) if p.role != "constant")

    @cached_property
    def unused(self) -> frozenset[int]:
        """Those of :attr:`learnt` that no node reads: their meta-gradient is none, rather than zero."""
        return frozenset(self.learnt).difference(*(node.parameters for node in self.nodes))

    def __str__(self) -> str:
        lines = [f"%0 : {list(self.values[0])}"]
        for node in self.nodes:
            names = [f"%{i}" for i in node.inputs]
            names += ["-" if i == ABSENT else self.parameters[i].name for i in node.parameters]
            settings = "".join(f" {name}={value:g}" for name, value in node.attributes)
            settings += f" ({node.says})" * bool(node.says)
            shape = list(self.values[node.output])
            lines.append(f"%{node.output} = {node.op}({', '.join(names)}){settings} : {shape}")
        if self.loss is not None:
            settings = "".join(f" {name}={value:g}" for name, value in self.loss.attributes)
            if self.loss.reduction != "weighted_mean":
                settings += f" reduction={self.loss.reduction}"
            if self.loss.elements != "mean":
                settings += f" elements={self.loss.elements}"
            if self.loss.class_weights:
                settings += f" class_weights={','.join(f'{w:g}' for w in self.loss.class_weights)}"
            lines.append(f"loss = {self.loss.kind}(%{self.output}){settings}")
        lines += [f"parameter {p.name} {list(p.shape)} {p.role}" for p in self.parameters]
        return "\n".join(lines)
