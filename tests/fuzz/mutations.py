"""How files of a bundle or a checkpoint are damaged: at random, but the same for the same seed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lensmith.runtimes.bundle.opening import MANIFEST
from lensmith.runtimes.storage.files import hash_file

from tests.helpers.manifests import DAMAGES, DELETE, damaged, fields
from tests.runtimes.prompt.test_template_bounds import BOMBS, MESSAGES

MEDIA = "golden/image_0.png"  # of a bundle with golden traces, or of none
ODD_NUMBERS = (0, 1, -1, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 62, -(1 << 63))


def mutate_bytes(data: bytes, draw: random.Random, *, first: int | None = None) -> bytes:
    """A few bytes flipped, cut, doubled, inserted or replaced by an odd number, mostly among the `first`."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(max(1, min(len(made), first or len(made))))
        act = draw.randrange(6)
        if act == 0 and made:
            made[place % len(made)] ^= 1 << draw.randrange(8)
        elif act == 1:
            del made[place : place + draw.choice((1, 4, 64, len(made)))]
        elif act == 2:
            made[place:place] = made[place : place + draw.choice((1, 8, 256))]
        elif act == 3:
            made[place:place] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 16))))
        elif act == 4:
            number = draw.choice(ODD_NUMBERS) & ((1 << 64) - 1)
            made[place : place + 8] = number.to_bytes(8, "little")
        elif made:
            made[place % len(made)] = draw.choice((0, 255, 127, 34, 123, 125))
    return bytes(made)


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """A value or two of JSON damaged, or its bytes."""
    if draw.random() < 0.2:
        return mutate_bytes(data, draw)
    values: Any = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 2))):
        paths = list(fields(values))
        if paths:
            values = damaged(values, draw.choice(paths), draw.choice(list(DAMAGES.values())))
    return json.dumps(values).encode("utf-8", "surrogatepass")


def mutate_template(data: bytes, draw: random.Random) -> bytes:
    """Bytes of a template damaged, or a bomb put into it."""
    if draw.random() < 0.5:
        return mutate_bytes(data, draw)
    bomb = draw.choice([*BOMBS.values(), *MESSAGES.values()]).encode("utf-8", "surrogatepass")
    place = draw.randrange(len(data))
    return bomb + data if draw.random() < 0.5 else data[:place] + bomb + data[place:]


def mutate_graph(data: bytes, draw: random.Random) -> bytes:
    """Bytes of a graph damaged, or a number or name in it."""
    import onnx

    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(draw.choice((1, 1, 2))):
        act = draw.randrange(6)
        node = draw.choice(graph.node)
        if act == 0 and node.attribute:
            draw.choice(node.attribute).i = draw.choice(ODD_NUMBERS)
        elif act == 1 and node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(graph.node).output[0]
        elif act == 2:
            node.op_type = draw.choice((*(other.op_type for other in graph.node), "ConstantOfShape", "Resize", "If"))
        elif act == 3:
            tensor = draw.choice(graph.initializer)
            tensor.dims[:] = [draw.choice((0, 1, 3, 64, 1 << 31)) for _ in tensor.dims]
        elif act == 4:
            place = [item for tensor in graph.initializer for item in tensor.external_data if item.key != "location"]
            if place:
                draw.choice(place).value = str(draw.choice(ODD_NUMBERS))
        else:
            tensor = draw.choice([tensor for tensor in graph.initializer if tensor.raw_data] or graph.initializer[:1])
            tensor.raw_data = mutate_bytes(tensor.raw_data, draw)[: len(tensor.raw_data)]
    return bytes(model.SerializeToString())


def mutate_any(data: bytes, draw: random.Random) -> bytes:
    """JSON as such, and any other file by its bytes, of which the first and the last say what is in it."""
    if data[:1] in (b"{", b"["):
        return mutate_json(data, draw)
    cut = draw.choice((0, max(len(data) - 2000, 0)))
    return data[:cut] + mutate_bytes(data[cut:], draw, first=4000)


def mutate_header(data: bytes, draw: random.Random) -> bytes:
    """The beginning of a GGUF file, where it says what is in it."""
    return mutate_bytes(data, draw, first=20_000)


Mutation = Callable[[bytes, random.Random], bytes]
# By kind: the files of which one is damaged, how, and whether the manifest then has their new hashes.
BUNDLE_FILES: Mapping[str, tuple[tuple[str, ...], Mutation]] = {
    "manifest": ((MANIFEST,), mutate_json),
    "template": (("chat_template.jinja",), mutate_template),
    "tokenizer": (("tokenizer.json",), mutate_json),
    "graph": (("decoder.onnx", "vision_encoder.onnx"), mutate_graph),
    "golden": (("golden/cases.json", "golden/traces.npz", "golden/built.json", "golden/built.npz"), mutate_any),
    "header": (("model.gguf", "mmproj.gguf"), mutate_header),
}
CHECKPOINT_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json",
                    "video_preprocessor_config.json", "tokenizer.json", "chat_template.jinja")  # fmt: skip


def damage(kind: str, folder: Path, seed: int) -> Path:
    """Damage a file of a copied bundle or checkpoint; its path."""
    draw = random.Random(f"{kind} {seed}")
    if kind == "config":
        names = [name for name in CHECKPOINT_FILES if (folder / name).exists()]
        name = draw.choice([*names, "config.json", "config.json"])
        change: Mutation = mutate_template if name.endswith(".jinja") else mutate_json
    else:
        names, change = [name for name in BUNDLE_FILES[kind][0] if (folder / name).exists()], BUNDLE_FILES[kind][1]
        name = draw.choice(names)
    path = folder / name
    path.write_bytes(change(path.read_bytes(), draw))
    if kind not in ("config", "manifest"):
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"][name] = hash_file(path)
        (folder / MANIFEST).write_text(json.dumps(manifest))
    return path


def restore(path: Path, folder: Path, original: Path) -> None:
    """Undo `damage`."""
    for name in {path.relative_to(folder).as_posix(), MANIFEST}:
        if (original / name).exists():
            shutil.copyfile(original / name, folder / name)


assert DELETE in DAMAGES.values()
