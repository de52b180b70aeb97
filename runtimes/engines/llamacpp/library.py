"""llama.cpp as a library: loaded when it is needed, quiet, its last words kept for error messages."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ....targets.errors import InputError, MissingExtra
from ...process.forks import forked
from .gguf_check import check_decoder

ERROR = 4  # ggml_log_level: 0 none, 1 debug, 2 info, 3 warn, 4 error, 5 continued
SMALL = 50_000_000  # parameters
MESSAGES: deque[str] = deque(maxlen=8)  # the latest errors, oldest first
_LISTENERS: list[list[str]] = []


@functools.cache
def llama() -> Any:
    """The module llama_cpp, made quiet; MissingExtra where it is not installed."""
    return _modules()[0]


@functools.cache
def mtmd() -> Any:
    """llama.cpp's interface to vision encoders."""
    return _modules()[1]


@functools.cache
def _modules() -> tuple[Any, Any]:
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except ImportError as error:
        raise MissingExtra("a GGUF bundle", "gguf") from error
    for set_log in (llama_cpp.llama_log_set, mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
        set_log(_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp, mtmd_cpp


@functools.cache
def _callback(llama_cpp: Any) -> Any:
    """Keeps errors instead of printing; the C side holds no reference, so this one must live as long as the process."""

    def keep(level: int, text: bytes, _: Any) -> None:
        said = text.decode("utf-8", "replace")
        for pieces in _LISTENERS:
            pieces.append(said)
        if level == ERROR:
            MESSAGES.append(said.strip())

    return llama_cpp.llama_log_callback(keep)


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Pieces of all that llama.cpp says within the block, whatever their level; joined they are lines."""
    pieces: list[str] = []
    _LISTENERS.append(pieces)
    try:
        yield pieces
    finally:
        _LISTENERS.remove(pieces)


def refused(path: Path, what: str) -> InputError:
    """The error for a file that llama.cpp does not take, with its own reason."""
    reason = MESSAGES[0][:300] if MESSAGES else "no reason given"
    MESSAGES.clear()
    return InputError(f"{path} cannot be {what} by llama.cpp ({reason}); export the bundle again")


def compute(function: Callable[..., int], *arguments: Any) -> int:
    """Call a function of llama.cpp that computes, in a forked process on a thread of its own.

    OpenMP gives each thread a team of helpers. The thread that forked comes into the child with the memory of its team
    but without the helpers, and would wait for them for ever.
    """
    if not forked():
        return function(*arguments)
    called = _threads(os.getpid()).submit(function, *arguments)
    try:
        return called.result()
    except BaseException:
        wait([called])  # what it still writes after an interrupt must not be read
        raise


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="lensmith-llama")


class LlamaModel:
    """The weights of a language model, mapped from their file. Freed with the last object that refers to it."""

    def __init__(self, path: Path) -> None:
        library = llama()
        check_decoder(path)
        options = library.llama_model_default_params()
        options.n_gpu_layers = 0
        MESSAGES.clear()
        self._free = library.llama_model_free
        self.handle = library.llama_model_load_from_file(os.fsencode(path), options)
        if not self.handle:
            raise refused(path, "loaded")
        self.path = path
        self.input_width = int(library.llama_model_n_embd_inp(self.handle))  # features and DeepStack side by side
        self.hidden = int(library.llama_model_n_embd(self.handle))
        self.vocab = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.handle)))
        self.recurrent = bool(
            library.llama_model_is_recurrent(self.handle) or library.llama_model_is_hybrid(self.handle)
        )

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._free(self.handle)
            self.handle = None

    def threads(self, wish: int | None) -> int:
        """A number of threads; None means one for each core, and a single one for a model below which they only wait.

        llama.cpp's threads spin, so that too many on a busy machine take many times as long.
        """
        parameters = int(llama().llama_model_n_params(self.handle))
        return wish or (1 if parameters < SMALL else os.cpu_count() or 1)
