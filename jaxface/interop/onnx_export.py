"""Any network as an ONNX graph."""

import contextlib
import io
import logging
import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxface.errors import UserError
from jaxface.interop.architecture import has_chain
from jaxface.interop.files import optional, replacing
from jaxface.interop.onnx_graph import chain_graph
from jaxface.interop.onnx_transformer import transformer_graph
from jaxface.interop.state_dict import check_variables
from jaxface.interop.transformer_layers import has_names
from jaxface.layers import DepthwiseConv, OneBitConv

_OPSET = 21
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
_CALLED = ("jaxpr", "call_jaxpr")
_LARGEST = 2**31 - 2**20  # bytes of a protocol buffer


def save_onnx(
    path: str | pathlib.Path, module: nn.Module, variables: Mapping, image_shape: tuple[int, int, int]
) -> None:
    """Writes a network as an ONNX graph, for any batch size.

        data [batch, C, H, W] float32 in [-1, 1] -> embedding [batch, E] float32, not normalized

    An `IResNet` with insightface blocks and a `MobileFaceNet` are written layer by layer under PyTorch's names (opset 15), and so
    are a `ViT` that reads its class token and a `Swin`, of plain blocks (opset 17); `read_onnx` reads them again. Every other
    network is traced (opset 21), and its weights have the names that the tracer gives. A network that computes in bfloat16 is
    written in float32. Detectors give their arrays as `output_0`, `output_1`, … in the order of `jax.tree.leaves`.

    Args:
      path: the file.
      module: any network of `jaxface.models`.
      variables: its variables; they become constants of the graph.
      image_shape: (H, W, C).

    Raises:
      UserError: variables of another network, an operation that ONNX lacks, weights beyond 2 GB, or a file that cannot be
        written.
    """
    if reason := getattr(module, "no_onnx", None):
        raise UserError(f"format: {type(module).__name__} has no form in ONNX: {reason}")
    check_variables(variables, module, image_shape)
    if has_chain(module):
        graph = chain_graph(module, variables, image_shape)
    elif has_names(module):
        graph = transformer_graph(module, variables, image_shape)
    else:
        graph = _traced_graph(module, variables, image_shape)
    if graph.ByteSize() > _LARGEST:
        raise UserError(f"format: an ONNX file holds 2 GB; this network needs {graph.ByteSize() / 1e9:.1f}")
    with replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def _traced_graph(module: nn.Module, variables: Mapping, image_shape: tuple[int, int, int]):
    """The `onnx.ModelProto` that jax2onnx makes of the network's own program."""
    if hasattr(module, "dtype"):
        module = module.clone(dtype=jnp.float32)
    constants = jax.device_get(variables)

    def convolutions(call, arguments, options, context):
        """Depthwise layers as convolutions: what they do instead on a CPU is a choice that ONNX cannot express."""
        if isinstance(context.module, DepthwiseConv | OneBitConv) and context.method_name == "__call__":
            options = {**options, "implementation": "convolution"}
        return call(*arguments, **options)

    def outputs(image: jax.Array) -> list[jax.Array]:
        with nn.intercept_methods(convolutions):
            return jax.tree.leaves(module.apply(constants, image, train=False))

    # Traced here, since jax2onnx would replace functions of Flax and NumPy by its own while it traces, not all of them alike.
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *image_shape), np.float32)
    program = jax.make_jaxpr(outputs)(image)
    count = len(program.out_avals)
    with _quiet():
        converter = optional("jax2onnx")
        try:
            graph = converter.to_onnx(
                lambda image: _inlined(program.jaxpr, program.consts, image),
                [image],
                model_name="jaxface",
                opset=_OPSET,
                inputs_as_nchw=[0],
                input_names=["data"],
                output_names=["embedding"] if count == 1 else [f"output_{i}" for i in range(count)],
            )
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"format: {type(module).__name__} has no form in ONNX: {reason}") from None
    # jax2onnx notes shapes of some values in the order of another layout; a runtime infers its own.
    del graph.graph.value_info[:]
    return graph


def _inlined(program, constants, *arguments) -> list[jax.Array]:
    """The values of a traced program, with its calls written out, and without the operations that jax2onnx does not know."""
    values = dict(zip(program.constvars, constants, strict=True))
    values.update(zip(program.invars, arguments, strict=True))

    def value(variable):
        return variable.val if isinstance(variable, jax.extend.core.Literal) else values[variable]

    for equation in program.eqns:
        inputs, options = [value(variable) for variable in equation.invars], equation.params
        called = next((options[name] for name in _CALLED if name in options), None)
        if equation.primitive.name in _CALLS and called is not None:
            outputs = _inlined(called.jaxpr, called.consts, *inputs)
        elif equation.primitive.name == "unstack":
            (stack,), axis = inputs, options["axis"]
            outputs = [lax.index_in_dim(stack, i, axis, keepdims=False) for i in range(stack.shape[axis])]
        elif equation.primitive.name == "reduce_window_max" and len(inputs[0].shape) == 4:
            outputs = [_max_pool(*inputs, **options)]
        elif equation.primitive.name == "pad":
            outputs = [_padded(*inputs, options["padding_config"])]
        else:
            outputs = equation.primitive.bind(*inputs, **options)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(variable) for variable in program.outvars]


def _max_pool(x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation) -> jax.Array:
    """A maximum over windows [1, k, k, 1] as the layer of Flax, which jax2onnx gives a node of two dimensions; of windows
    over four it makes one that no runtime has, and of a padding that is given in numbers it takes no notice."""
    if {window_dimensions[0], window_dimensions[3], *base_dilation, *window_dilation} != {1}:
        raise ValueError("a maximum over windows of batch or channels, or over windows with gaps")
    x = _padded(x, jnp.array(-jnp.inf, x.dtype), [(*sides, 0) for sides in padding])
    return nn.max_pool(x, window_shape=window_dimensions[1:3], strides=window_strides[1:3], padding="VALID")


def _padded(x: jax.Array, value: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
    """`lax.pad` without gaps as slices and concatenations: jax2onnx pads no array whose batch is any size."""
    for axis, (low, high, gap) in enumerate(config):
        if gap:
            raise ValueError("padding between the elements of an array")
        size = x.shape[axis]
        start, stop = max(0, -low), size - max(0, -high) if high < 0 else size
        if start or high < 0:
            x = lax.slice_in_dim(x, start, stop, axis=axis)

        def margin(count, x=x, axis=axis):
            shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
            return [jnp.broadcast_to(value, shape)] if count > 0 else []

        sides = [*margin(low), x, *margin(high)]
        x = jnp.concatenate(sides, axis) if len(sides) > 1 else x
    return x


@contextlib.contextmanager
def _quiet():
    """Without what jax2onnx prints and logs of its own making."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
