"""What `bench transfer` measures: the cases, and what was found of each."""

from dataclasses import dataclass

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import InstanceId, Tier

TRANSPORTS = ("device_put", "tcp", "jax_transfer", "collective")
ANY_TIER = ("device_put", "tcp")  # transports that take HOST ends too
COUNTS = (1, 16, 128, 1024)
NUM_SCATTERED = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """How the two ends are sharded."""

    source_tp: int
    target_tp: int
    num_kv_heads: int = 4

    @property
    def name(self) -> str:
        """As shown: `4->2`, with the heads where they do not divide."""
        heads = "" if self.num_kv_heads % 2 == 0 else f" ({self.num_kv_heads} heads)"
        return f"{self.source_tp}->{self.target_tp}{heads}"

    @property
    def layout(self) -> KVLayout:
        """A Llama-like layout with blocks of 16 KiB a head: 64 KiB with four."""
        return KVLayout(
            num_layers=4,
            num_kv_heads=self.num_kv_heads,
            block_size_tokens=16,
            head_dim=32,
            dtype="float32",
        )


SHAPES = (Shape(1, 1), Shape(1, 2), Shape(4, 2), Shape(2, 4), Shape(2, 2), Shape(2, 2, 3))


@dataclass(frozen=True, slots=True)
class Ends:
    """The two pools of a measurement."""

    source: InstanceId
    target: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    transport: str
    shape: Shape
    num_blocks: int
    source: Tier = Tier.HBM
    target: Tier = Tier.HBM
    is_whole: bool = False  # gather, put and scatter, with the control channel; else the put alone
    is_scattered: bool = False  # no two of the sender's blocks lie side by side

    @property
    def num_bytes(self) -> int:
        """That move."""
        return self.num_blocks * self.shape.layout.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Medians over rounds; ratios are medians of the rounds' own."""

    case: Case
    num_calls: int  # of the transport, for one transfer
    seconds: float
    spread: float  # half the middle half over the median
    times_copy: float  # speed over numpy's copy of the same bytes
    times_socket: float  # speed over one bare TCP stream

    @property
    def bytes_per_s(self) -> float:
        """Speed."""
        return self.case.num_bytes / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What the machine did with the same number of bytes, in the same rounds."""

    num_bytes: int
    copy_s: float
    copy_spread: float
    socket_s: float
    socket_spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """All of it."""

    jax_version: str
    num_rounds: int
    bounds: tuple[Bound, ...]
    found: tuple[Found, ...]


def cases_of(
    transports: tuple[str, ...], shapes: tuple[Shape, ...], counts: tuple[int, ...]
) -> list[Case]:
    """Returns the cases to measure, those of one shape together.

    Puts for every shape; whole transfers, between all tiers, for the first shape alone.
    """
    cases: list[Case] = []
    for shape in shapes:
        cases += [
            Case(transport=transport, shape=shape, num_blocks=count)
            for transport in transports
            for count in counts
        ]
        if shape != shapes[0]:
            continue
        for transport in transports:
            ends = (Tier.HBM, Tier.HOST) if transport in ANY_TIER else (Tier.HBM,)
            cases += [
                Case(
                    transport=transport,
                    shape=shape,
                    num_blocks=count,
                    source=source,
                    target=target,
                    is_whole=True,
                )
                for source in ends
                for target in ends
                for count in counts
            ]
            cases.append(
                Case(
                    transport=transport,
                    shape=shape,
                    num_blocks=NUM_SCATTERED,
                    is_whole=True,
                    is_scattered=True,
                )
            )
    return cases
