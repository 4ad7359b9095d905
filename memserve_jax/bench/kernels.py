"""`memserve bench kernels`: each op in each of its forms, against what the device does at best.

A case's forms are timed in turns, and in every round the rates that bound them are measured too:
a copy in the device's memory and, for prefill attention, a large matrix product.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

import jax

from memserve_jax.bench.bounds import CopyProbe, MatmulProbe
from memserve_jax.bench.kernel_arrays import Run, make_arrays, renew
from memserve_jax.bench.kernel_case import KernelCase
from memserve_jax.bench.kernel_error import max_error
from memserve_jax.bench.kernel_forms import form_names, make_form
from memserve_jax.core.clock import Clock, SystemClock
from memserve_jax.core.errors import MemServeError
from pallas_kernels.device import device

Progress = Callable[[int, int, str], None]  # done, total, what

MOST_CALLS = 50  # of a round


@runtime_checkable
class KernelPeer(Protocol):
    """Another library's attention: `bench/kernel_peer.py`."""

    name: str
    version: str

    def takes(self, case: KernelCase) -> bool:
        """Whether the library has such an op."""
        ...

    def seconds(self, case: KernelCase, num_calls: int) -> float:
        """Returns the seconds of a call, the mean of so many; MemServeError: it cannot."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBenchOptions:
    """How to measure."""

    cases: tuple[KernelCase, ...]
    memory_bytes: int  # that cases may take on the device
    num_rounds: int = 5  # medians over them
    round_s: float = 0.02  # that a form is called for in a round, about
    most_call_s: float = 1.0  # cases that take longer even at the bound are skipped
    probe_bytes: int | None = None  # that the copy moves; None: as suits the platform
    probe_size: int | None = None  # of the matrices; None: likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class FormReport:
    """One form: medians over rounds; ratios are medians of the rounds' own."""

    name: str
    us: float  # a call, of several dispatched one after another
    spread: float  # of that: half the middle half over the median
    per_s: float  # bytes, or for prefill attention FLOP
    fraction: float  # of the copy's or the product's rate
    times_first: float  # over the case's first form, ours: above 1 is slower than it
    max_error: float | None  # against float64; None: another process has the result


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCaseReport:
    """One case in all its forms."""

    case: KernelCase
    name: str
    num_bytes: int
    num_flops: float
    is_arithmetic: bool  # bound by products rather than by memory: prefill attention
    bound_per_s: float  # bytes or FLOP, measured in the same rounds
    forms: tuple[FormReport, ...]
    left_out: Mapping[str, str]  # form -> why


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBenchReport:
    """What was measured, and on what."""

    device: str
    platform: str
    jax_version: str
    copy_bytes_per_s: float
    flops_per_s: float
    peers: Mapping[str, str]  # name -> versions
    cases: tuple[KernelCaseReport, ...]
    skipped: Mapping[str, str]  # case -> why

    def to_mapping(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Form:
    name: str
    measure_s: Callable[[], float]  # of a call
    max_error: float | None
    seconds: list[float] = field(default_factory=list)


class _Bounds:
    """Both rates, and all that was measured of them."""

    def __init__(self, options: KernelBenchOptions, dtype: str, clock: Clock):
        self._copy = CopyProbe(clock, num_bytes=options.probe_bytes)
        self._matmul = MatmulProbe(clock, dtype, size=options.probe_size)
        self.copies = [self._copy.bytes_per_s()]
        self.products = [self._matmul.flops_per_s()]

    def measure(self, case: KernelCase) -> float:
        """Returns the rate that bounds the case, now."""
        if _is_arithmetic(case):
            self.products.append(self._matmul.flops_per_s())
            return self.products[-1]
        self.copies.append(self._copy.bytes_per_s())
        return self.copies[-1]

    def least_s(self, case: KernelCase) -> float:
        """Returns the seconds of a call at the bounds."""
        copy_s = case.num_bytes / statistics.median(self.copies)
        return max(copy_s, case.num_flops / statistics.median(self.products))


def run(
    options: KernelBenchOptions,
    *,
    peers: Sequence[KernelPeer] = (),
    progress: Progress | None = None,
) -> KernelBenchReport:
    """Measures every case that fits on the first device.

    Args:
      options: The cases, at least one, all of one dtype.
      peers: Started already.
      progress: Told after each case.
    """
    clock, platform = SystemClock(), device().platform
    bounds = _Bounds(options, options.cases[0].dtype, clock)
    found: list[KernelCaseReport] = []
    skipped: dict[str, str] = {}
    for done, case in enumerate(options.cases):
        why = case.refusal(options.memory_bytes) or _too_long(case, bounds, options)
        if why is None:
            found.append(_measure(case, options, bounds, peers, clock))
        else:
            skipped[case.name] = why
        if progress:
            progress(done + 1, len(options.cases), case.name)
    return KernelBenchReport(
        device=device().kind,
        platform=platform,
        jax_version=jax.__version__,
        copy_bytes_per_s=statistics.median(bounds.copies),
        flops_per_s=statistics.median(bounds.products),
        peers={peer.name: peer.version for peer in peers},
        cases=tuple(found),
        skipped=skipped,
    )


def _is_arithmetic(case: KernelCase) -> bool:
    return case.op == "ragged_paged_attention"


def _too_long(case: KernelCase, bounds: _Bounds, options: KernelBenchOptions) -> str | None:
    least_s = bounds.least_s(case)
    if least_s <= options.most_call_s:
        return None
    return f"a call takes {least_s:.1f} s at best, more than {options.most_call_s:g}"


def _measure(
    case: KernelCase,
    options: KernelBenchOptions,
    bounds: _Bounds,
    peers: Sequence[KernelPeer],
    clock: Clock,
) -> KernelCaseReport:
    forms, left_out = _forms(case, options, clock)
    calls = max(1, min(MOST_CALLS, int(options.round_s / bounds.least_s(case))))
    for peer in peers:
        if peer.takes(case):
            try:
                peer.seconds(case, 1)  # makes its arrays
            except MemServeError as error:
                left_out[peer.name] = str(error)
                continue
            forms.append(_Form(peer.name, lambda peer=peer: peer.seconds(case, calls), None))
    rates: list[float] = []
    for _ in range(options.num_rounds):
        rates.append(bounds.measure(case))
        for form in forms:
            form.seconds.append(form.measure_s())
    return KernelCaseReport(
        case=case,
        name=case.name,
        num_bytes=case.num_bytes,
        num_flops=case.num_flops,
        is_arithmetic=_is_arithmetic(case),
        bound_per_s=statistics.median(rates),
        forms=tuple(_report(case, form, forms[0], rates) for form in forms),
        left_out=left_out,
    )


def _forms(
    case: KernelCase, options: KernelBenchOptions, clock: Clock
) -> tuple[list[_Form], dict[str, str]]:
    """Returns the forms that run, compiled and checked, and why the others do not."""
    platform, arrays = device().platform, make_arrays(case)
    forms: list[_Form] = []
    left_out: dict[str, str] = {}
    for name, why in form_names(case, platform, options.memory_bytes).items():
        if why is not None:
            left_out[name] = why
            continue
        try:
            call = make_form(name, case, arrays, platform)
            error = max_error(case, arrays, jax.block_until_ready(call()))
        except Exception as refused:  # compilers refuse in many ways: it is said
            left_out[name] = _first_line(refused)
            renew(case, arrays)
            continue
        forms.append(_Form(name, _timed(call, options.round_s, clock), error))
    return forms, left_out


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a word'}"


def _timed(call: Run, round_s: float, clock: Clock) -> Callable[[], float]:
    """Returns what measures the seconds of a call: as many as fill `round_s`, then one wait."""
    once_s = max(mean_seconds(call, 1, clock), 1e-9)
    num_calls = max(1, min(MOST_CALLS, int(round_s / once_s)))
    return lambda: mean_seconds(call, num_calls, clock)


def mean_seconds(call: Run, num_calls: int, clock: Clock) -> float:
    """Returns the mean seconds of calls dispatched one after another, the last one waited for."""
    start_s = clock.now_s()
    result = call()
    for _ in range(num_calls - 1):
        result = call()
    jax.block_until_ready(result)
    return (clock.now_s() - start_s) / num_calls


def _report(case: KernelCase, form: _Form, first: _Form, rates: list[float]) -> FormReport:
    amount = case.num_flops if _is_arithmetic(case) else case.num_bytes
    seconds = statistics.median(form.seconds)
    low, _, high = statistics.quantiles(form.seconds, n=4)
    pairs = zip(form.seconds, rates, strict=True)
    ratios = zip(form.seconds, first.seconds, strict=True)
    return FormReport(
        name=form.name,
        us=seconds * 1e6,
        spread=(high - low) / 2 / seconds,
        per_s=amount / seconds,
        fraction=statistics.median(amount / taken / rate for taken, rate in pairs),
        times_first=statistics.median(one / other for one, other in ratios),
        max_error=form.max_error,
    )
