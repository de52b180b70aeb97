"""From graph descriptions to ONNX graphs: inputs and outputs by name, the files of the ort contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import GraphBuilder, nn

from ..formats.functions import add_functions
from ..formats.onnx.joined_products import join_products
from ..formats.onnx.rotated_heads import rotate_heads
from ..spec import ClipModelSpec, ModelSpec, QwenModelSpec
from ..storage.scheme import Policy
from .blocks import Linear, SourceTensor, sources
from .decoder import Decoder
from .dialect import Dialect
from .draft_head import MtpHead
from .graph_ports import (
    F32,
    I64,
    add_input,
    add_output,
    add_states,
    decoder_inputs,
    mtp_inputs,
)
from .graph_terms import Port, Value
from .kv_cache import FLOAT_CACHE
from .quick_builder import QuickBuilder
from .state_names import kv_states, layer_states
from .vit import INDEX_PORTS, VisionEncoder
from .vit_clip import ClipTower, Projector

IR_VERSIONS = {21: 10, 24: 12}  # by opset: of each pair the oldest that has everything used here


@dataclass(frozen=True)
class Prefixes:
    """Where a checkpoint keeps the parts of the model."""

    vision: str
    text: str
    head: str
    mtp: str = "mtp"
    projector: str = ""  # where it is no part of the vision encoder


@dataclass(frozen=True)
class Graph:
    """A graph without weights, and the source tensors that make them."""

    name: str
    model: ir.Model
    sources: tuple[SourceTensor, ...]
    lender: Graph | None = None  # whose data file also holds the bytes of `borrowed`
    borrowed: tuple[SourceTensor, ...] = ()


class EncoderShape(Protocol):
    """What the ports of a vision encoder follow from."""

    @property
    def patch_dim(self) -> int: ...
    @property
    def out_hidden(self) -> int: ...
    @property
    def deepstack_layers(self) -> tuple[int, ...]: ...


class PixelEncoderShape(Protocol):
    """What the ports of an encoder for images of one size follow from."""

    @property
    def channels(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def out_hidden(self) -> int: ...


def build_vision(
    spec: QwenModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The vision encoder: pixel_values and image_grid_thw to image_features (and deepstack_features)."""
    encoder, places = VisionEncoder(dialect, spec.vision, policy), INDEX_PORTS if dialect.ports.indexed else {}
    return encoder_graph(encoder, spec.vision, prefixes.vision, opsets, places)


def encoder_graph(
    encoder: nn.Module,
    spec: EncoderShape,
    prefix: str,
    opsets: dict[str, int],
    places: Mapping[str, Port],
    *,
    by_frame: bool = False,
) -> Graph:
    """The graph of a described encoder of patches of any grid, whose tensors are below `prefix`.

    `places` are inputs that say where patches lie, for dialects that want them. `by_frame`: it takes a single grid, of
    one frame, by which the runtime knows that the frames of a video go in one by one.
    """
    pixels = add_input("pixel_values", F32, ["patches", spec.patch_dim])
    grid = add_input("image_grid_thw", I64, [1 if by_frame else "images", 3])
    given = {name: add_input(name, *port) for name, port in places.items()}
    builder = _builder("vision_encoder", [pixels, grid, *given.values()], opsets)
    features, taps = encoder(builder.op, pixels, grid, given)
    width = spec.out_hidden
    add_output(builder, features, "image_features", F32, ["image_tokens", width])
    if taps is not None:
        add_output(builder, taps, "deepstack_features", F32, [len(spec.deepstack_layers), "image_tokens", width])
    return _graph(builder, tuple(sources(encoder, prefix)))


def build_clip(
    spec: ClipModelSpec,
    policy: Policy,
    dialect: Dialect,
    prefixes: Prefixes,
    opsets: dict[str, int],
) -> Graph:
    """The vision encoder of LLaVA."""
    vision = spec.vision
    tower, projector = ClipTower(dialect, vision, policy), Projector(dialect, vision, policy)
    projector._set_name("multi_modal_projector")
    return pixel_graph(tower, projector, vision, prefixes, opsets)


def pixel_graph(
    tower: nn.Module, projector: nn.Module, spec: PixelEncoderShape, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The graph of a described encoder for images of one size: pixel_values [images, 3, side, side] to image_features.

    The tower takes the pixels, the projector what it gives; their tensors are below the two prefixes.
    """
    pixels = add_input("pixel_values", F32, ["images", spec.channels, spec.image_size, spec.image_size])
    builder = _builder("vision_encoder", [pixels], opsets)
    features = projector(builder.op, tower(builder.op, pixels))
    add_output(builder, features, "image_features", F32, ["image_tokens", spec.out_hidden])
    return _graph(builder, (*sources(tower, prefixes.vision), *sources(projector, prefixes.projector)))


def build_decoder(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int]
) -> Graph:
    """The decoder: token ids, image features, positions and past states to logits and present states."""
    text, taps = spec.decoder, spec.taps
    ports = dialect.ports
    inputs = decoder_inputs(spec, taps, ports, policy.kv_cache)
    values = [inputs.input_ids, inputs.image_features, inputs.position_ids, inputs.past_lengths, inputs.num_logits]
    values += [inputs.deepstack_features] if taps else []
    values += [] if inputs.num_hidden_states is None else [inputs.num_hidden_states]
    values += inputs.lengths or []
    builder = _builder("decoder", [*values, *(v for pair in inputs.past for v in pair)], opsets)
    decoder = Decoder(dialect, text, policy, spec.image_token_id)
    head = None if text.tied else _head(spec, policy, dialect, prefixes)
    out = decoder(builder.op, inputs, head)
    add_output(builder, out.logits, "logits", F32, [ports.batch, "num_logits", text.vocab])
    if text.mtp:
        add_output(builder, out.hidden_states, "hidden_states", F32, [ports.batch, "num_hidden_states", text.hidden])
    for index, pair in enumerate(out.present):
        add_states(builder, pair, layer_states(text, index, policy.kv_cache), ports)
    used = tuple(sources(decoder, prefixes.text))
    return _graph(builder, used if head is None else used + tuple(sources(head, prefixes.head)))


def build_mtp(
    spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes, opsets: dict[str, int], lender: Graph
) -> Graph:
    """The multi-token-prediction head; the token table and the output head lie in the data file of the decoder."""
    text = spec.decoder
    inputs = mtp_inputs(spec, dialect.ports)
    values = [value for value in vars(inputs).values() if isinstance(value, ir.Value)]
    builder = _builder("mtp", [*values, *(inputs.lengths or []), *inputs.past], opsets)
    scheme = policy.scheme("table", text.hidden, "embed_tokens")
    table = dialect.table(text.vocab, text.hidden, scheme, shared=text.tied)
    table._set_name("embed_tokens")
    head = None if text.tied else _head(spec, policy, dialect, prefixes)
    mtp = MtpHead(dialect, text, policy.inside("mtp"), spec.image_token_id)
    out = mtp(builder.op, inputs, table, head)
    add_output(builder, out.logits, "logits", F32, [dialect.ports.batch, "num_logits", text.vocab])
    add_output(builder, out.hidden_states, "draft_hidden_states", F32, [dialect.ports.batch, "num_logits", text.hidden])
    add_states(builder, out.present[0], kv_states(text, 0, FLOAT_CACHE), dialect.ports)
    graph = _graph(builder, tuple(sources(mtp, prefixes.mtp)))
    borrowed = [*sources(table, f"{prefixes.text}.embed_tokens")]
    borrowed += [] if head is None else [*sources(head, prefixes.head)]
    return replace(graph, lender=lender, borrowed=tuple(borrowed))


def _head(spec: ModelSpec, policy: Policy, dialect: Dialect, prefixes: Prefixes) -> Linear:
    text = spec.decoder
    head = Linear(dialect, text.hidden, text.vocab, policy.scheme("table", text.hidden, "lm_head"), bias=False)
    head._set_name(prefixes.head)
    return head


def _builder(name: str, inputs: list[Value], opsets: dict[str, int]) -> GraphBuilder:
    return QuickBuilder(ir.Graph(inputs, [], nodes=[], opset_imports=dict(opsets), name=name))


def _graph(builder: GraphBuilder, used: tuple[SourceTensor, ...]) -> Graph:
    # Why shapes of a node are not known. Bodies of loops keep their module scopes, in which classes are named: renaming
    # `Decoder`, `Layer` or Arlow's `Attention` and `Block` changes the bytes of bundles.
    for node in builder.graph:
        node.metadata_props.clear()
    join_products(builder.graph)
    rotate_heads(builder.graph)
    version = IR_VERSIONS[builder.graph.opset_imports[""]]
    model = ir.Model(
        builder.graph, ir_version=version, producer_name="lensmith", functions=add_functions(builder.graph)
    )
    RemoveUnusedNodesPass()(model)
    unused = {"image_grid_thw", "past_lengths"}  # by dialects that have no use for them
    for value in [value for value in builder.graph.inputs if value.name in unused and not value.uses()]:
        builder.graph.inputs.remove(value)
    return Graph(str(builder.graph.name), model, used)
