"""What is asked: about each kind of picture, about two, and without any. {names} are filled in by chance."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from .canvas import COLOURS, number, words
from .pictures import SHAPES

# About any picture, in turn: so a folder of pictures is asked as well.
ANY = (
    "Describe this image in detail.",
    "Is anything written in this image? If so, repeat it exactly.",
    "Is there a person in this picture? Answer yes or no.",
    'Describe this picture as JSON with the keys "title", "objects" and "colours".',
    "How many different objects can you count?",
    "Beschreibe dieses Bild in zwei Sätzen.",
    "Write a short title for this picture.",
    "What are the main colours? Answer with a list, one a line.",
    "请用中文描述这张图片。",
    "What is at the top left, and what is in the middle?",
    "Décris cette image à un enfant.",
    "List everything that you can see, separated by commas.",
    "¿Qué se ve en esta imagen? Responde con una frase.",
    "What would you change to make this picture clearer?",
    "この画像について説明してください。",
    "Что изображено на этой картинке?",
)
OF_PICTURES: Mapping[str, tuple[str, ...]] = {
    "scenes": (
        "How many {shape}s are there? Answer with a number.",
        "Is there a {colour} {shape}? Answer yes or no.",
        "Which colour is the largest shape?",
        "List the shapes from left to right with their colours.",
        'Give every shape as JSON: [{{"shape": ..., "colour": ..., "position": ...}}].',
        "Wie viele Formen siehst du?",
        "Tell a short story about this scene.",
    ),
    "lettering": (
        "What is written here?",
        "Read the text and write it down exactly as it stands, with capitals and numbers.",
        "How many words are there?",
        "Translate the text in the picture to German.",
        'Return the text as JSON: {{"text": ...}}.',
        "请写出图片里的文字。",
        "Does the word “{word}” appear? Answer yes or no.",
    ),
    "charts": (
        "Which value is the largest?",
        "Read all values from this chart, one a line.",
        "Summarise this chart in one sentence.",
        "Is the last value higher than the first? Answer yes or no.",
        'Give the data of this chart as JSON: {{"name": value, ...}}.',
        "Quelle est la tendance de ce graphique ?",
    ),
    "tables": (
        "What is in the second row?",
        "Write this table as Markdown.",
        "How many rows and columns does the table have?",
        "Which row has the highest value in the last column?",
        "Give the table as a JSON list with an object for each row.",
        "¿Cuál es el título de la primera columna?",
    ),
    "forms": (
        "Which fields are not filled in?",
        "Extract all fields and their values as JSON.",
        "Is any box ticked? Answer yes or no.",
        "What is the heading of this form?",
        "Liste alle Felder mit ihren Werten auf.",
    ),
    "documents": (
        "Summarise this document in one sentence.",
        "What is the title of this page?",
        "Write out the first paragraph.",
        "Which numbers, dates or codes are mentioned?",
        "この文書の要点は何ですか。",
    ),
    "photos": (),
    "noise": ("Can you recognise anything? Answer yes or no, and say why.",),
}
OF_PAIRS = (
    "What is different between the two images?",
    "Which of the two pictures has more {colour} in it?",
    "Describe the first image, then the second.",
    "Do both pictures show the same kind of thing? Answer yes or no.",
    "Vergleiche die beiden Bilder.",
)
ALONE: Mapping[str, tuple[str, ...]] = {
    "instructions": (
        "Explain in two sentences why the sky is blue.",
        "Write a polite email that moves a meeting about “{word}” to next week.",
        "Give three reasons to learn how {word} works.",
        "Rewrite this more formally: {words}.",
        "What is the difference between a lake and a sea?",
        "Write a haiku about {word}.",
        "Sort these words by the alphabet: {words}.",
        'Answer as JSON with the keys "answer" and "confidence": is {word} a verb?',
    ),
    "languages": (
        "Warum ist der Himmel blau? Erkläre es einem Kind.",
        "Quelle est la capitale de l'Italie, et pourquoi est-elle connue ?",
        "¿Cómo se prepara una tortilla de patatas?",
        "请解释一下什么是光合作用。",
        "日本で一番高い山は何ですか。短く説明してください。",
        "Расскажи кратко, как работает холодильник.",
        "ما هي عاصمة مصر؟",
        "भारत की राजधानी क्या है?",
        "Translate to French and to Japanese: {words}.",
        "Como se diz “{word}” em português?",
    ),
    "code": (
        "Write a Python function that returns the largest of three numbers.",
        "What does this print?\n\nfor i in range({small}):\n    print(i * i)",
        "Write a SQL query for all orders above {number} from the table orders.",
        "Fix the mistake: `def add(a, b) return a + b`",
        "Write a C function that reverses a string in place.",
        "Explain what a hash table is, with a short example in JavaScript.",
        'Write a regular expression that finds "{word}" at the start of a line.',
        "```rust\nfn main() {{\n    let xs = vec![1, 2, {small}];\n```\nComplete it so that it prints the sum.",
    ),
    # What was said before is said again, word by word: long answers that attention and recurrent states must hold.
    "copying": (
        "Copy this text exactly: {passage}",
        "Repeat: {words}",
        "Copy: {passage}",
        "Write down the following without any change.\n\n{passage}",
        "Wiederhole wortwörtlich: {words}",
        "Repeat these numbers in the same order: {numbers}",
        "请逐字重复以下内容 {words}",
        "Répète mot pour mot : {passage}",
    ),
    "arithmetic": (
        "What is {small} + {large}?",
        "Multiply {large} by {small} and show each step.",
        "A train travels {large} km in {small} hours. How fast is it?",
        "Write the numbers from {small} to twelve in words.",
        "What is {small} % of {large}?",
        "Which is larger: {small}/7 or {small}/9? Answer with one fraction.",
    ),
}
CALLS = (
    "What is the weather in Paris today?",
    "Remind me of “{word}” at {small} o'clock.",
    "Find {small} documents about {word}.",
    "Turn the light in the kitchen off.",
    "How much is {large} dollars in euros?",
)
BEGINNINGS = ("", "The", "", "How do I", "", "Write", "", "In", "", "I have a", "", "What", "", "def ", "", "Die")


def _tool(name: str, about: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": key.replace("_", " ")} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": [*parameters]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = (
    _tool("get_weather", "The weather in a city", city="string", days="integer"),
    _tool("set_reminder", "Reminds the user at a time", text="string", hour="integer"),
    _tool("search", "Finds documents", query="string", limit="integer"),
    _tool("switch_light", "Turns a light on or off", room="string", on="boolean"),
    _tool("convert", "Converts an amount of money", amount="number", source="string", target="string"),
)


def filled(draw: random.Random, question: str) -> str:
    """A question with its {names} filled in."""
    chances = {
        "shape": draw.choice(SHAPES), "colour": draw.choice([*COLOURS]), "word": words(draw, 1).lower(),
        "words": words(draw, draw.randrange(4, 9)), "passage": words(draw, draw.randrange(10, 40)),
        "number": number(draw), "numbers": " ".join(str(draw.randrange(1000)) for _ in range(draw.randrange(5, 20))),
        "small": draw.randrange(2, 12), "large": draw.randrange(12, 2000),
    }  # fmt: skip
    return question.format(**chances)


def tools_of(draw: random.Random) -> tuple[Mapping[str, Any], ...]:
    """Some of TOOLS in any order, each its own object."""
    return tuple(json.loads(json.dumps(tool)) for tool in draw.sample(TOOLS, draw.randrange(2, len(TOOLS) + 1)))
