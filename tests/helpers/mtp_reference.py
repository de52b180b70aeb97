"""A draft head of a bundle over a prompt in chunks, beside the one in PyTorch."""

from __future__ import annotations

from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.prompt.requests import Request


def assert_drafts(model: Model, reference: DraftReference, request: Request, limit: float) -> None:
    """Logits and hidden states of all positions within `limit` of PyTorch's."""
    ids = request.prompt.ids
    hidden = reference.hidden_states(request)
    logits, states = reference.logits(request, hidden[:, :-1])
    head, begin = model.open_draft_head(), 0
    for end in (1, 8, 70, len(request.prompt) - 1):
        span = slice(begin + 1, end + 1)
        images = request.features_between(begin + 1, end + 1)
        ours = head.append(
            Step(
                ids[span],
                request.positions[:, span],
                images,
                num_logits=end - begin,
                hidden_states=hidden[0, begin:end].numpy(),
            )
        )
        assert relative_error(ours, logits[begin:end]) < limit
        assert relative_error(head.states.hidden_states, states[begin:end]) < limit
        begin = end
