"""The files of a bundle that are text: tokenizer and chat template of a decoder, and the licence."""

from __future__ import annotations

from importlib.metadata import version

from ..runtimes.bundle.bundle_writer import BundleWriter
from ..runtimes.generation.sampling import SamplingOptions
from ..targets.errors import InputError
from .checkpoint.folder import Checkpoint
from .job import Job
from .spec import Spec


def check_prompt_files(checkpoint: Checkpoint, spec: Spec) -> None:
    """InputError for a decoder without a chat template, and for sampling options that cannot be."""
    if spec.decoder is not None:
        if not checkpoint.outline:
            chat_template(checkpoint)
        SamplingOptions.from_generation_config(checkpoint.generation_config)


def chat_template(checkpoint: Checkpoint) -> str:
    """The chat template of a checkpoint; an InputError where it has none."""
    if checkpoint.chat_template is None:
        raise InputError(
            f"{checkpoint.path} has no chat template; expected chat_template.jinja or chat_template "
            "in tokenizer_config.json: copy it from the model's repository"
        )
    return checkpoint.chat_template


HANDLER = '''"""Answers requests of Hugging Face's Inference Endpoints from the bundle beside this file."""

from lensmith.runtimes.generation.endpoint import Endpoint as EndpointHandler

__all__ = ["EndpointHandler"]
'''


def write_text_files(job: Job, writer: BundleWriter, *, with_handler: bool) -> None:
    """Write the text files of a job; `with_handler` also what makes an inference endpoint of the folder."""
    if with_handler:
        writer.add("handler.py").write_text(HANDLER, encoding="utf-8")
        writer.add("requirements.txt").write_text(f"lensmith=={version('lensmith')}\n", encoding="utf-8")
    if job.spec.decoder is not None:
        writer.add("tokenizer.json").write_bytes(job.tokenizer.data)
        writer.add("chat_template.jinja").write_text(chat_template(job.checkpoint), encoding="utf-8")
    if job.checkpoint.license_text:
        writer.add("LICENSE").write_text(job.checkpoint.license_text, encoding="utf-8")
