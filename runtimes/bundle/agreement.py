"""Whether the sections of a manifest agree: what it counts twice is the same, and what it needs is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import PurePosixPath

from msgspec import UNSET

from ..storage.files import is_safe_name
from .graph_entries import GraphEntry, PortEntry, Profile
from .input_sections import (
    MOST_TILED,
    Clips,
    CropImages,
    FrameVideos,
    NoImagesEntry,
    PatchImages,
    PromptEntry,
    TileImages,
)
from .manifest import MANIFEST, Manifest

TRACES = ("golden/cases.json", "golden/traces.npz")
SUFFIXES: Mapping[str, tuple[str, ...]] = {  # of the decoder's file, by format
    "onnx": (".onnx",),
    "gguf": (".gguf",),
    "tensorrt": (".onnx", ".engine"),
}
STATE, PRESENT = ("past_key_values.", "past."), "present."
MOST_VALUES = 1 << 34  # of what a graph takes or gives at once, where no size varies: a KV cache of a fixed size
MOST_KEPT = 1 << 28  # of a recurrent state
MOST_KEYS = 1 << 18  # of a token in a KV cache of any size: heads times their width
MOST_WIDTH = 1 << 20  # of features


class Disagreement(Exception):
    """What does not agree, in words that begin with the name of the field."""


def check_agreement(manifest: Manifest) -> None:
    """Raises Disagreement with the first thing in which the sections of a manifest contradict one another."""
    _check_files(manifest)
    # What each kind of bundle must have
    if "decoder" in manifest.graphs:
        _require(manifest.prompt is not UNSET, "'prompt' is missing, which a bundle with a decoder needs")
        _require(manifest.encoder is UNSET, "'encoder' is for bundles without a decoder")
        _require(not isinstance(manifest.video, Clips), "'video' is that of a bundle without a decoder")
        suffix, options = PurePosixPath(manifest.graphs["decoder"].file).suffix, manifest.options
        _require(suffix in SUFFIXES[options.format], f"options.format is {options.format!r} and the decoder a {suffix}")
    else:
        _require(manifest.encoder is not UNSET, "'encoder' is missing, which a bundle without a decoder needs")
        _require(isinstance(manifest.video, Clips), "'video' is missing or not that of a bundle without a decoder")
        _require(isinstance(manifest.image, PatchImages), "image.kind is 'crop' in a bundle without a decoder")
        _require(manifest.options.format != "gguf", "options.format is 'gguf' in a bundle without a decoder")
    _require("vision_encoder" in manifest.graphs or "decoder" in manifest.graphs, "'graphs' has no vision_encoder")
    for name, graph in manifest.graphs.items():
        _check_graph(f"graphs[{name!r}]", graph, manifest)
    _check_pixels(manifest)
    if manifest.prompt is not UNSET and "decoder" in manifest.graphs:
        _check_prompt(manifest.prompt, manifest)
    _check_widths(manifest)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Disagreement(what)


def _check_files(manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        safe = is_safe_name(name) and name not in (MANIFEST, f"{MANIFEST}.sig")
        _require(safe, f"the file name {name!r} should be a relative path inside the bundle")
        _require(entry.sha256 != "", f"files[{name!r}] has no sha256")
    needed = {f"the graph {name!r} is in": graph.file for name, graph in manifest.graphs.items()}
    if manifest.prompt is not UNSET:
        needed |= {"prompt.template is": manifest.prompt.template, "prompt.tokenizer is": manifest.prompt.tokenizer}
    if manifest.evidence.golden is not UNSET and manifest.evidence.golden.recorded:
        needed |= {f"evidence.golden is in part {number}": name for number, name in enumerate(TRACES)}
    for what, name in needed.items():
        _require(name in manifest.files, f"{what} {name!r}, which is not one of its files")


def _check_graph(where: str, graph: GraphEntry, manifest: Manifest) -> None:
    suffix = PurePosixPath(graph.file).suffix
    _require(suffix in (".onnx", ".gguf", ".engine"), f"{where}.file is {graph.file!r}, expected .onnx, .gguf, .engine")
    _require((suffix == ".engine") == (graph.engine is not UNSET), f"{where}.engine does not fit the file {graph.file}")
    _require(graph.plugin is UNSET or suffix == ".onnx", f"{where}.plugin does not fit the file {graph.file}")
    expected = {"onnx": ("ort", "cuda"), "gguf": ("ort",), "tensorrt": ("tensorrt",)}[manifest.options.format]
    _require(graph.dialect in expected, f"{where}.dialect is {graph.dialect!r}, expected {' or '.join(expected)}")
    for kind, ports in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for name, port in ports.items():
            values = prod(size for size in port.shape if isinstance(size, int))
            _require(values <= MOST_VALUES, f"{where}.{kind}[{name!r}].shape is {port.shape}, more than can be")
    told = [entry for entry in (graph.engine, graph.plugin) if entry is not UNSET]
    profiles = [profile for entry in told for profile in entry.profiles]
    for profile in profiles:
        _check_profile(where, profile, graph.inputs)
    _check_states(where, graph)


def _check_profile(where: str, profile: Profile, inputs: Mapping[str, PortEntry]) -> None:
    _require(profile.keys() == inputs.keys(), f"{where} has a profile that does not name each of its inputs")
    for name, (least, usual, most) in profile.items():
        shape = inputs[name].shape
        fits = len(least) == len(usual) == len(most) == len(shape) and all(
            low <= middle <= high and (not isinstance(size, int) or low == size == high)
            for size, low, middle, high in zip(shape, least, usual, most, strict=True)
        )
        _require(fits, f"{where} has a profile in which {name} goes from {least} to {most}, expected {shape}")


def _check_states(where: str, graph: GraphEntry) -> None:
    """Each state that goes in comes out again, of the same type and shape."""
    for name, port in graph.inputs.items():
        if name.startswith(STATE):
            parts, after = name.split("."), PRESENT + name.removeprefix(STATE[0]).removeprefix(STATE[1])
            _require(len(parts) == 3 and parts[1].isdecimal(), f"{where}.inputs has a state named {name!r}")
            rank = {"key": 4, "value": 4, "conv": 3, "recurrent": 4}.get(parts[2])
            _require(len(port.shape) == rank, f"{where}.inputs[{name!r}] is no state of a layer")
            _require(graph.outputs.get(after) == port, f"{where}.outputs[{after!r}] is not as inputs[{name!r}]")
            values = prod(size for size in port.shape if isinstance(size, int))
            most = MOST_KEPT if rank == 3 or parts[2] == "recurrent" else MOST_KEYS
            bounded = values <= most or (isinstance(port.shape[2], int) and parts[2] in ("key", "value"))
            _require(bounded, f"{where}.inputs[{name!r}].shape is {port.shape}, more than can be")


def _check_pixels(manifest: Manifest) -> None:
    limits, image = manifest.limits, manifest.image
    sizes = limits.min_pixels, limits.max_pixels, limits.max_image_tokens
    if isinstance(image, NoImagesEntry):
        _require(set(sizes) == {0}, "limits has sizes of images, and image.kind is 'none'")
        _require(manifest.video is UNSET, "'video' does not go with image.kind 'none'")
        return
    _require(all(sizes), "limits lacks min_pixels, max_pixels or max_image_tokens, which images need")
    _require(limits.min_pixels <= limits.max_pixels, "limits.min_pixels is above limits.max_pixels")
    if isinstance(image, CropImages):
        _require(limits.max_image_tokens == image.image_tokens, "limits.max_image_tokens is not image.image_tokens")
        _require((image.resized or image.cropped or image.shortest_edge) is not None, "image.cropped is missing")
    elif isinstance(image, TileImages):
        expected = image.most_tokens
        _require(expected <= MOST_TILED, f"image.longest_edge, tile and tile_tokens make {expected} tokens of an image")
        _require(limits.max_image_tokens == expected, f"limits.max_image_tokens should be {expected}")
    else:
        block = (image.patch_size * image.merge_size) ** 2
        expected = limits.max_pixels // block
        _require(limits.max_image_tokens == expected, f"limits.max_image_tokens should be {expected}")
    video = manifest.video
    if video is UNSET:
        return
    _require(video.min_pixels <= video.max_pixels, "video.min_pixels is above video.max_pixels")
    if isinstance(video, FrameVideos):
        _require(video.min_frames <= video.max_frames, "video.min_frames is above video.max_frames")
    elif video.strategy == "fps_based":
        _require(video.fps is not None, "video.fps is missing, which the strategy 'fps_based' needs")
    _require(isinstance(image, PatchImages), "'video' does not go with images of one size")
    for key in ("patch_size", "temporal_patch_size", "merge_size"):
        _require(getattr(video, key) == getattr(image, key, None), f"video.{key} is not image.{key}")


def _check_prompt(prompt: PromptEntry, manifest: Manifest) -> None:
    decoder = manifest.graphs["decoder"]
    vocabulary = _last(decoder.outputs, "logits", "graphs['decoder'].outputs", 3)
    for field, ids in (("eos_token_ids", prompt.eos_token_ids), ("token_ids", prompt.token_ids.values())):
        most = max(ids, default=0)
        _require(most < vocabulary, f"prompt.{field} has {most} of a vocabulary of {vocabulary} tokens")
    tokens = prompt.tokens
    named = {"image_token": tokens.image_token, "video_token": tokens.video_token}
    for role, token in named.items():
        _require(token is None or token in prompt.token_ids, f"prompt.token_ids lacks the {role} {token!r}")
    if manifest.video is not UNSET:
        _require(tokens.video_token is not None, "prompt.tokens.video_token is missing, and there is a section 'video'")
    tiled = isinstance(manifest.image, TileImages)
    _require(tiled == (prompt.tiles is not None), "prompt.tiles and image.kind 'tiles' do not go without each other")
    if isinstance(manifest.image, PatchImages):
        _require(prompt.merge_size == manifest.image.merge_size, "prompt.merge_size is not image.merge_size")
    positions = decoder.inputs.get("position_ids")
    shape = [] if positions is None else positions.shape
    fits = len(shape) == 2 or (len(shape) == 3 and shape[0] == 3)
    _require(
        fits, f"graphs['decoder'].inputs['position_ids'].shape is {shape}, expected [3, batch, seq] or [batch, seq]"
    )


def _check_widths(manifest: Manifest) -> None:
    """Features are as wide behind the encoder as in front of the decoder, patches as the image section cuts them."""
    graphs = manifest.graphs
    if (encoder := graphs.get("vision_encoder")) is not None:
        _check_encoder(encoder, manifest)
        if (decoder := graphs.get("decoder")) is not None:
            for name in ("image_features", "deepstack_features"):
                if name in decoder.inputs and (name in encoder.outputs or name == "image_features"):
                    wide = _widths(decoder.inputs, name), _widths(encoder.outputs, name)
                    _require(wide[0] == wide[1], f"graphs['decoder'].inputs[{name!r}].shape is not the encoder's")
    for name in ("decoder", "mtp"):
        if name in graphs:
            _last(graphs[name].inputs, "image_features", f"graphs[{name!r}].inputs", 2)
            _last(graphs[name].outputs, "logits", f"graphs[{name!r}].outputs", 3)


def _check_encoder(encoder: GraphEntry, manifest: Manifest) -> None:
    where, image = "graphs['vision_encoder']", manifest.image
    _last(encoder.outputs, "image_features", f"{where}.outputs", 2)
    if encoder.file.endswith(".gguf"):
        return
    shape = encoder.inputs["pixel_values"].shape if "pixel_values" in encoder.inputs else []
    if isinstance(image, PatchImages):
        expected = [3 * image.temporal_patch_size * image.patch_size**2]
    elif isinstance(image, NoImagesEntry):
        raise Disagreement("image.kind is 'none', and 'graphs' has a vision_encoder")
    elif isinstance(image, TileImages):
        expected = [3, image.tile, image.tile]
    else:
        expected = [3, *(image.cropped or image.resized or shape[-2:])]
    _require(shape[1:] == expected, f"{where}.inputs['pixel_values'].shape is {shape}, expected {expected} each")


def _widths(ports: Mapping[str, PortEntry], name: str) -> Iterable[int] | None:
    port = ports.get(name)
    return None if port is None else [size for size in port.shape if isinstance(size, int)]


def _last(ports: Mapping[str, PortEntry], name: str, where: str, rank: int) -> int:
    """The last size of a port, which is a number."""
    shape = ports[name].shape if name in ports else []
    last = shape[-1] if len(shape) == rank else None
    if name == "image_features" and isinstance(last, int):
        _require(last <= MOST_WIDTH, f"{where}[{name!r}].shape is {shape}, wider than can be")
    if not isinstance(last, int):
        raise Disagreement(f"{where}[{name!r}].shape is {shape}, expected {rank} sizes of which the last is a number")
    return last
