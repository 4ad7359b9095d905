"""What one routing decision costs: by instances, by blocks that are known, by the prompt's length.

Parts of a decision are timed apart: the names of a prompt's blocks (a chain of hashes over its
tokens, made once and kept), the lookup in the global tree, and what is left of `Router.plan`.
Prompts are held in part, by one instance each, as conversations are.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.block_names import BlockNames
from memserve_jax.core.clock import ManualClock
from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.types import InstanceId, Request, RequestId, Role, SamplingParams
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.policies import POLICIES
from scheduler.router import Router
from scheduler.state import State, make_state

BLOCK_SIZE_TOKENS = 16
_FILL_BLOCKS = 512  # of a prompt that the trees are filled with
_COST = CostModel(fixed_s=5e-3, s_per_token=3e-5, s_per_token_pair=1e-9)
_NUM_PROMPTS = 16  # of each length, taken in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """Microseconds, medians over rounds; `decide_us` is without the hashing."""

    num_instances: int
    num_blocks: int  # (block, instance) pairs that the trees know
    prompt_tokens: int
    policy: str
    hash_us: float
    decide_us: float
    least_decide_us: float
    p90_decide_us: float

    @property
    def decisions_per_s(self) -> float:
        """Of one scheduler that does nothing else, names made beforehand."""
        return 1e6 / self.decide_us


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeTime:
    """Microseconds of a global tree that knows `num_blocks`: medians over rounds."""

    num_blocks: int
    prompt_blocks: int
    lookup_us: float
    least_lookup_us: float
    insert_us_per_block: float
    least_insert_us_per_block: float


class DecisionBench:
    """A router over instances that exist by name alone, with trees filled step by step."""

    def __init__(self, num_instances: int, *, most_blocks: int, policy: str = "min_ttft"):
        self._clock = ManualClock()
        section = SchedulerSection(prompt_tree_ttl_s=1e9, prompt_tree_blocks=2 * most_blocks + 4096)
        self._state = make_state(section, self._clock, model="none")
        self._policy = policy
        self._router = Router(self._state, policy=POLICIES[policy], cost=_COST)
        self._random = np.random.default_rng(0)
        self._num_instances = num_instances
        self._num_filled = 0
        for number in range(num_instances):
            self._state.cluster.register(_status(number))

    @property
    def state(self) -> State:
        """What the router knows."""
        return self._state

    def fill(self, num_blocks: int) -> None:
        """Has the instances hold so many blocks in all, one prompt each in turn."""
        tree = self._state.trees[Role.COLOCATED]
        while tree.num_blocks < num_blocks:
            count = min(_FILL_BLOCKS, num_blocks - tree.num_blocks)
            text = self._random.bytes(16 * count)
            names = [text[at : at + 16] for at in range(0, len(text), 16)]
            tree.confirm(_name(self._num_filled % self._num_instances), names, 0.0)
            self._num_filled += 1

    def measure(self, prompt_tokens: int, num_rounds: int) -> DecisionTime:
        """Times decisions on prompts of which the first half is held by some instance."""
        prompts = [self._held_prompt(prompt_tokens) for _ in range(_NUM_PROMPTS)]
        hash_us: list[float] = []
        decide_us: list[float] = []
        for number in range(num_rounds):
            request = prompts[number % len(prompts)]
            start_ns = time.perf_counter_ns()
            keys = block_keys(request.prompt_token_ids, BLOCK_SIZE_TOKENS)
            names = BlockNames(request.cache_salt, keys)
            names.first(len(names))
            hashed_ns = time.perf_counter_ns()
            plan = self._router.plan(request, names=names)
            end_ns = time.perf_counter_ns()
            hash_us.append((hashed_ns - start_ns) / 1e3)
            decide_us.append((end_ns - hashed_ns) / 1e3)
            flight = self._state.flights.admit(RequestId(f"f{number}"))
            self._state.flights.depart(flight, plan.route, plan.work)
            if number % 2:
                self._state.flights.prefilled(flight)
            self._state.flights.land(flight)
        return DecisionTime(
            num_instances=self._num_instances,
            num_blocks=self._state.trees[Role.COLOCATED].num_blocks,
            prompt_tokens=prompt_tokens,
            policy=self._policy,
            hash_us=statistics.median(hash_us),
            decide_us=statistics.median(decide_us),
            least_decide_us=min(decide_us),
            p90_decide_us=float(np.percentile(decide_us, 90)),
        )

    def measure_tree(self, prompt_blocks: int, num_rounds: int) -> TreeTime:
        """Times lookups of prompts held as a whole, and inserts of new ones, names made before."""
        tree = self._state.trees[Role.COLOCATED]
        names = [self._new_names(prompt_blocks) for _ in range(_NUM_PROMPTS)]
        for number, each in enumerate(names):
            tree.confirm(_name(number % self._num_instances), each, 0.0)
        num_blocks = tree.num_blocks
        lookup_us: list[float] = []
        insert_us: list[float] = []
        for number in range(num_rounds):
            held, fresh = names[number % len(names)], self._new_names(prompt_blocks)
            instance = _name(number % self._num_instances)
            start_ns = time.perf_counter_ns()
            tree.depths(held, 0.0)
            found_ns = time.perf_counter_ns()
            tree.confirm(instance, fresh, 0.0)
            end_ns = time.perf_counter_ns()
            lookup_us.append((found_ns - start_ns) / 1e3)
            insert_us.append((end_ns - found_ns) / 1e3 / prompt_blocks)
        return TreeTime(
            num_blocks=num_blocks,
            prompt_blocks=prompt_blocks,
            lookup_us=statistics.median(lookup_us),
            least_lookup_us=min(lookup_us),
            insert_us_per_block=statistics.median(insert_us),
            least_insert_us_per_block=min(insert_us),
        )

    def _held_prompt(self, num_tokens: int) -> Request:
        request = Request(
            request_id=RequestId("r"),
            session_id="",
            prompt_token_ids=tuple(self._random.integers(0, 1 << 31, num_tokens).tolist()),
            sampling=SamplingParams(),
        )
        names = BlockNames("", block_keys(request.prompt_token_ids, BLOCK_SIZE_TOKENS))
        holder = _name(int(self._random.integers(self._num_instances)))
        self._state.trees[Role.COLOCATED].confirm(holder, names.first(len(names) // 2), 0.0)
        return request

    def _new_names(self, count: int) -> list[bytes]:
        text = self._random.bytes(16 * count)
        return [text[at : at + 16] for at in range(0, len(text), 16)]


def hash_us(num_tokens: int, num_rounds: int) -> tuple[float, float]:
    """Returns the median and the least microseconds to name the blocks of a prompt."""
    random = np.random.default_rng(0)
    times: list[float] = []
    for _ in range(num_rounds):
        prompt = tuple(random.integers(0, 1 << 31, num_tokens).tolist())
        names = BlockNames("", block_keys(prompt, BLOCK_SIZE_TOKENS))
        start_ns = time.perf_counter_ns()
        names.first(len(names))
        times.append((time.perf_counter_ns() - start_ns) / 1e3)
    return statistics.median(times), min(times)


def _name(number: int) -> InstanceId:
    return InstanceId(f"i{number:05d}")


def _status(number: int) -> pb.InstanceStatus:
    return pb.InstanceStatus(
        instance=_name(number),
        epoch=1,
        role=Role.COLOCATED,
        state="serving",
        target="127.0.0.1:1",
        model="none",
        tensor_parallelism=1,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        caching="on",
    )
