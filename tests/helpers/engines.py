"""Engines on tiny models, and what they answer."""

import functools
import pathlib
import tempfile
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import EngineSection, MemPoolSection
from memserve_jax.core.model_card import load_card
from memserve_jax.core.tokenizer import load_tokenizer
from memserve_jax.core.types import (
    CachingMode,
    FinishReason,
    InstanceId,
    Request,
    RequestId,
    Role,
    SamplingParams,
)
from memserve_jax.engine.engine import Engine
from memserve_jax.engine.events import Failed, FirstToken, PrefillDone, Tokens
from memserve_jax.engine.inputs import Column
from memserve_jax.engine.steps import Steps
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.batch import PrefillBatch
from pallas_kernels.pages import KVPages
from tests.helpers.tiny import tiny_bundle, tiny_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@functools.cache
def checkpoint() -> str:
    """Returns the directory of the tiny model, made once a process."""
    return tiny_checkpoint(pathlib.Path(tempfile.mkdtemp(prefix="memserve-test-")) / "tiny")


@functools.cache
def bundle_on(first_device: int = 0, tp: int = 1):
    """Returns the tiny model on some devices, loaded once a process."""
    return tiny_bundle(checkpoint(), first_device=first_device, tp=tp)


@functools.cache
def steps_on(first_device: int, tp: int, num_rows: int, line_width: int) -> Steps:
    """Returns the steps that all engines of this size here share, to compile them once."""
    return Steps(bundle_on(first_device, tp), num_rows=num_rows, line_width=line_width)


@functools.cache
def card():
    """Returns the tiny model's card."""
    return load_card(checkpoint())


@functools.cache
def tokenizer():
    """Returns the tiny model's tokenizer."""
    return load_tokenizer(checkpoint())


def make_engine(
    *,
    instance="c0",
    role=Role.COLOCATED,
    caching=CachingMode.ON,
    first_device=0,
    tp=1,
    block_size=8,
    hbm_blocks=64,
    host_blocks=0,
    disk=None,
    channel=None,
    transports=(),
    clock=None,
    shares_steps=True,
    bundle=None,
    mempool=None,
    **options,
) -> tuple[Engine, MemPool]:
    """Returns an engine on the tiny model, or on `bundle`, and its pool.

    `options` are of EngineSection, `mempool` those of MemPoolSection.
    """
    shares_steps = shares_steps and bundle is None
    bundle = bundle or bundle_on(first_device, tp)
    clock = clock or ManualClock()
    pool = MemPool(
        instance=InstanceId(instance),
        epoch=1,
        layout=bundle.config.layout(block_size, bundle.dtype),
        mesh=bundle.mesh,
        hbm_blocks=hbm_blocks,
        host_blocks=host_blocks,
        disk=disk,
        channel=channel,
        transports=transports,
        clock=clock,
    )
    defaults = {"max_running": 4, "chunk_tokens": 32, "max_context_tokens": 512}
    config = EngineSection(**(defaults | options))
    context = min(config.max_context_tokens, hbm_blocks * block_size + 1)
    width = Column.TABLE + -(-context // block_size)
    engine = Engine(
        instance=InstanceId(instance),
        role=role,
        caching=caching,
        config=config,
        bundle=bundle,
        pool=pool,
        card=card(),
        tokenizer=tokenizer(),
        clock=clock,
        mempool=MemPoolSection(**(mempool or {})),
        steps=steps_on(first_device, tp, config.max_running, width) if shares_steps else None,
    )
    return engine, pool


def make_request(name, prompt, sampling=GREEDY, **fields) -> Request:
    """Returns a request for these token ids."""
    return Request(
        request_id=RequestId(name),
        session_id="",
        prompt_token_ids=tuple(int(token) for token in prompt),
        sampling=sampling,
        **fields,
    )


def random_prompt(length, seed=0) -> list[int]:
    """Returns printable bytes at random."""
    return np.random.default_rng(seed).integers(97, 122, size=length).tolist()


@dataclass
class Answered:
    """What events said of one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: object = None
    error: Exception | None = None
    first: FirstToken | None = None
    done: PrefillDone | None = None

    def take(self, event) -> None:
        """Adds an event; asserts that events follow each other as they should."""
        assert self.finish_reason is None, "an event after the end"
        match event:
            case Tokens():
                assert event.first_index == len(self.token_ids)
                self.token_ids += event.token_ids
                self.text += event.text
                self.logprobs += event.logprobs or ()
                self.top_logprobs += event.top_logprobs or ()
                self.finish_reason, self.usage = event.finish_reason, event.usage
                assert (event.finish_reason is None) == (event.usage is None)
            case FirstToken():
                assert self.first is None
                self.first = event
            case PrefillDone():
                self.done = event
            case Failed():
                self.error = event.error


def run(engine, answers=None, *, max_steps=5000) -> dict[str, Answered]:
    """Steps an engine until it has no work; checks it all along."""
    answers = {} if answers is None else answers
    for _ in range(max_steps):
        if not engine.has_work:
            return answers
        for event in engine.step():
            answers.setdefault(event.request_id, Answered()).take(event)
        engine.check()
    raise AssertionError("the engine does not come to rest")


def answer(engine, prompt, sampling=GREEDY, name="r", **fields) -> Answered:
    """Returns what a colocated engine answers to one prompt."""
    engine.submit(make_request(name, prompt, sampling, **fields))
    return run(engine)[name]


@functools.cache
def _whole_forward(length: int):
    bundle = bundle_on()
    layout = bundle.config.layout(length, bundle.dtype)

    @jax.jit
    def logits_of(params, token_ids, num_tokens):
        page = jnp.zeros(layout.page_shape(1), bundle.dtype)
        pages = KVPages((page,) * layout.num_layers, (page,) * layout.num_layers)
        places = jnp.arange(length, dtype=jnp.int32)
        batch = PrefillBatch(
            token_ids=token_ids,
            positions=places,
            slots=jnp.where(places < num_tokens, places, length),
            block_tables=jnp.zeros((1, 1), jnp.int32),
            query_starts=jnp.stack([jnp.int32(0), num_tokens]),
            context_lens=num_tokens[None],
        )
        return bundle.prefill(params, pages, batch)[0][0]

    return logits_of


def naive_logits(token_ids) -> np.ndarray:
    """Returns the logits after `token_ids`, all computed in one pass, cached nowhere."""
    length = max(128, 1 << (len(token_ids) - 1).bit_length())  # few shapes to compile
    padded = np.zeros(length, np.int32)
    padded[: len(token_ids)] = token_ids
    return np.asarray(_whole_forward(length)(bundle_on().params, padded, np.int32(len(token_ids))))


@functools.cache
def naive_greedy(prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """Returns the greedy answer, by a whole forward pass for each token."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(naive_logits(tokens).argmax()))
    return tokens[len(prompt) :]
