"""Errands: questions about a picture that want a tool, the calls that are right, the tool's answers and the last words.

Three tools: `add_to_cart(colour, count)` needs a number from the picture, `find_owner(colour, shape)` a colour, and
`look_up(text)` a word. Where the tool is not given, the right answer is `NO_TOOL`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.training.drawing import HELDOUT_FONTS, WORDS, Scene, draw_shapes, draw_words

Tool = dict[str, Any]
ERRANDS = ("cart", "owner", "word", "words_each")
NO_TOOL = "I have no tool for that."
MOST_SHAPES = 5


def _tool(name: str, description: str, **types: str) -> Tool:
    properties = {parameter: {"type": kind} for parameter, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": list(types)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = {
    "add_to_cart": _tool("add_to_cart", "Put all shapes of a colour into the cart.", colour="string", count="integer"),
    "find_owner": _tool("find_owner", "Who owns a shape.", colour="string", shape="string"),
    "look_up": _tool("look_up", "What a word means.", text="string"),
}


@dataclass(frozen=True)
class Call:
    """A call of a tool, and what the tool answers."""

    name: str
    arguments: dict[str, str | int]
    response: dict[str, str | int]


@dataclass(frozen=True)
class Errand:
    """What is asked, the calls it wants, the final text, and the thoughts before the calls and before the text."""

    task: str
    prompt: str
    calls: tuple[Call, ...]
    final: str
    thoughts: tuple[str, str]

    @property
    def tool(self) -> str:
        """The tool that it needs."""
        return self.calls[0].name


def cart_errand(rng: random.Random, scene: Scene) -> Errand:
    """Wants the colour of all shapes and their number."""
    colour, count, price = scene.items[0].colour, len(scene.items), rng.randint(1, 99)
    shapes = "shape" if count == 1 else "shapes"
    return Errand(
        "cart",
        "Put the shapes into the cart.",
        (Call("add_to_cart", {"colour": colour, "count": count}, {"price": price}),),
        f"I put {count} {colour} {shapes} into the cart for {price}.",
        (f"The picture has {count} {colour} {shapes}.", f"The price is {price}."),
    )


def owner_errand(rng: random.Random, scene: Scene) -> Errand:
    """Wants the colour and the kind of the only shape."""
    (item,), owner = scene.items, rng.choice(WORDS)
    return Errand(
        "owner",
        "Who owns the shape?",
        (Call("find_owner", {"colour": item.colour, "shape": item.name}, {"owner": owner}),),
        f"The {owner} owns the {item.colour} {item.name}.",
        (f"The picture has a {item.colour} {item.name}.", f"The owner is the {owner}."),
    )


def word_errand(rng: random.Random, scene: Scene) -> Errand:
    """Wants the words of a picture with one word or two, each looked up."""
    words = [item.name for item in scene.items]
    meanings = rng.sample(WORDS, len(words))
    return Errand(
        "word" if len(words) == 1 else "words_each",
        "Look up the word." if len(words) == 1 else "Look up both words.",
        tuple(
            Call("look_up", {"text": word}, {"meaning": meaning}) for word, meaning in zip(words, meanings, strict=True)
        ),
        " ".join(f"The word {word} means {meaning}." for word, meaning in zip(words, meanings, strict=True)),
        (f"The picture shows {' and '.join(words)}.", f"It means {' and '.join(meanings)}."),
    )


def some_tools(rng: random.Random) -> tuple[str, ...]:
    """The names of all tools, of some or of none, in any order."""
    return tuple(rng.sample(list(TOOLS), rng.randint(0, len(TOOLS))))


def heldout_errand(
    rng: random.Random, task: str, draw_size: Callable[[random.Random], tuple[int, int]]
) -> tuple[Scene, Errand, tuple[str, ...]]:
    """A picture, its words in fonts that training never uses, an errand of the task, and tools with the right one."""
    scene, errand = _draw_errand(rng, task, draw_size)
    others = [name for name in TOOLS if name != errand.tool]
    names = [errand.tool, *rng.sample(others, rng.randint(0, len(others)))]
    return scene, errand, tuple(rng.sample(names, len(names)))


def _draw_errand(
    rng: random.Random, task: str, draw_size: Callable[[random.Random], tuple[int, int]]
) -> tuple[Scene, Errand]:
    size = draw_size(rng)
    if task == "cart":
        scene = draw_shapes(rng, size, most=MOST_SHAPES, one_colour=True)
        return scene, cart_errand(rng, scene)
    if task == "owner":
        scene = draw_shapes(rng, size, most=1)
        return scene, owner_errand(rng, scene)
    scene = draw_words(rng, size, count=1 if task == "word" else 2, fonts=HELDOUT_FONTS)
    return scene, word_errand(rng, scene)
