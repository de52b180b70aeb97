"""Where the time of one answer went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Where the time of one answer went, in milliseconds, and how many tokens it had.

    `image_ms` is what the answer waited for images and frames to be decoded, resized and cut, of which most is done
    while others are encoded; `vision_ms` is encoding, `prefill_ms` the prompt and its first token, `decode_ms` all
    tokens behind it, an end token among them, without what the reader of the answer does meanwhile.
    `reused_tokens` of the `prompt_tokens` were still in the cache from an earlier turn. Of the `drafted_tokens`, which
    were guessed ahead, `accepted_tokens` were right and took no step of their own.
    """

    image_ms: float = 0.0  # waiting for images and frames of videos to be decoded, resized and cut
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, still in the cache from an earlier turn
    image_tokens: int = 0
    video_tokens: int = 0
    new_tokens: int = 0
    drafted_tokens: int = 0  # guessed ahead, to be computed several at once
    accepted_tokens: int = 0  # of the drafted ones, those that were right

    @property
    def first_token_ms(self) -> float:
        """From the question to the first token."""
        return self.image_ms + self.vision_ms + self.prefill_ms

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding behind the first token."""
        return 1000 * (self.new_tokens - 1) / self.decode_ms if self.decode_ms else 0.0
