"""The schema of a deployment: frozen dataclasses that YAML and `--set a.b=c` fill.

Precedence: flag > `--set` > file > default. See `configs/` for examples.
"""

import dataclasses
import difflib
import pathlib
import typing
from collections.abc import Mapping, Sequence

import pydantic
import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from memserve_jax.core.errors import ConfigError
from memserve_jax.core.overload_section import FairnessSection, QueueSection, SloSection
from memserve_jax.core.planner_section import PlannerSection
from memserve_jax.core.security_section import SecuritySection
from memserve_jax.core.telemetry_sections import LogSection, MetricsSection, TracingSection
from memserve_jax.core.types import CachingMode, Role

_STRICT = ConfigDict(extra="forbid")


def _spell_caching(value: object) -> object:
    """YAML reads a bare `on` or `off` as true or false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Transport = typing.Literal["device_put", "collective", "jax_transfer", "tcp"]
_Caching = typing.Annotated[CachingMode | None, pydantic.BeforeValidator(_spell_caching)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelSection:
    """Which model, in which number format."""

    path: str | None = None  # None: the embedded tiny model
    dtype: typing.Literal["float32", "bfloat16"] | None = None  # None: by platform


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MemPoolSection:
    """Memory of each instance."""

    block_size_tokens: int = Field(default=16, ge=1, le=256)
    hbm_blocks: int | None = Field(default=None, ge=1)  # None: from hbm_fraction
    hbm_fraction: float = Field(default=0.9, gt=0, le=1)  # of the memory weights leave free
    host_gb: float = Field(default=0.0, ge=0)  # 0: no HOST tier
    disk_gb: float = Field(default=0.0, ge=0)  # 0: no DISK tier
    disk_path: str | None = None  # the DISK tier's directory; an instance's own below it
    prefetch_timeout_s: float = Field(default=2.0, ge=0)  # a request waits so long for its hits
    pin_fraction: float = Field(default=0.25, ge=0, le=1)  # of HBM blocks that pins may keep
    eviction: typing.Literal["lru"] = "lru"
    transfer_timeout_s: float = Field(default=30.0, gt=0)
    transfer_mode: typing.Literal["auto", "by_layer", "by_request", "by_request_aggregated"] = (
        "by_request_aggregated"
    )
    layer_groups: int = Field(default=4, ge=1)  # by_layer: parts a step is cut into
    auto_low_tokens: int = Field(default=512, ge=0)  # auto: with a queue up to this, by layer
    auto_high_tokens: int = Field(default=2048, ge=0)  # and with a longer one than this, aggregated
    max_transfers: int = Field(default=64, ge=1)  # under way at once from one instance
    transports: tuple[Transport, ...] | None = None  # allowed, best first; None: by platform
    fetch: typing.Literal["cost", "always", "never"] = "never"  # from peers that hold more

    @pydantic.model_validator(mode="after")
    def _low_is_below_high(self) -> "MemPoolSection":
        if self.auto_low_tokens > self.auto_high_tokens:
            raise ConfigError(
                f"mempool.auto_low_tokens: got {self.auto_low_tokens}, allowed: at most "
                f"mempool.auto_high_tokens, {self.auto_high_tokens}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EngineSection:
    """Batching of each instance."""

    max_context_tokens: int | None = Field(default=None, ge=2)  # None: the model's, at most 8192
    max_running: int = Field(default=32, ge=1)  # rows of a decode batch
    max_waiting: int = Field(default=1024, ge=1)
    chunk_tokens: int = Field(default=512, ge=16)  # token budget of a step
    preemption: typing.Literal["recompute", "swap"] = "recompute"
    kernels: typing.Literal["auto", "reference", "xla", "pallas", "interpret"] = "auto"
    warm_up: bool = True
    compile_cache: str | None = None  # None: the user's cache folder; "": none


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InstanceSection:
    """One instance of a cluster given by hand."""

    instance: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    role: Role
    devices: tuple[int, ...] | None = None  # None: the next `tp` ones
    tp: int = Field(default=1, ge=1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CostSection:
    """What prefills and fetches cost: as fitted, or linear until something is.

    A linear cost of prefill is scaled by the rate that instances report.
    """

    path: str | None = None  # a file of `memserve bench fit`; then no other key is used
    fixed_s: float = Field(default=5e-3, ge=0)
    s_per_token: float = Field(default=1e-4, ge=0)
    s_per_token_pair: float = Field(default=0.0, ge=0)
    fetch_fixed_s: float = Field(default=5e-3, ge=0)  # a reservation, a round trip, a commit
    fetch_bytes_per_s: float = Field(default=1e9, gt=0)

    @pydantic.model_validator(mode="after")
    def _is_fitted_or_linear(self) -> "CostSection":
        if self.path is None:
            return self
        usual = dataclasses.asdict(CostSection()) | {"path": self.path}
        given = [name for name, value in dataclasses.asdict(self).items() if value != usual[name]]
        if given:
            raise ConfigError(
                f"scheduler.cost.path: got {self.path!r} and {given[0]}, allowed: one of them; "
                "the file has them all"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SchedulerSection:
    """The global scheduler."""

    policy: typing.Literal["min_ttft", "longest_prefix", "session", "least_load", "round_robin"] = (
        "min_ttft"
    )
    policy_min_gain: float = Field(default=0.2, ge=0, lt=1)  # of the time to first token: what
    # min_ttft has to save to leave the instance that holds most of a prompt
    freshness: typing.Literal["events", "responses"] = "events"  # how the prompt trees learn
    prompt_tree_ttl_s: float = Field(default=300.0, gt=0)
    prompt_tree_blocks: int = Field(default=1_000_000, ge=1)  # per role, over all instances
    heartbeat_s: float = Field(default=0.5, gt=0)
    heartbeat_timeout_s: float = Field(default=5.0, gt=0)
    max_instances: int = Field(default=4096, ge=1)  # registered at once
    max_in_flight: int = Field(default=4096, ge=1)
    max_replays: int = Field(default=3, ge=0)  # attempts at a request after one has failed
    replay_wait_s: float = Field(default=30.0, ge=0)  # for an instance to replay it on
    replay_pause_s: float = Field(default=0.05, ge=0)  # before the first replay, at most
    cost: CostSection = CostSection()
    queue: QueueSection = QueueSection()
    fairness: FairnessSection = FairnessSection()
    slo: SloSection = SloSection()
    planner: PlannerSection = PlannerSection()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """A whole deployment."""

    model: ModelSection = ModelSection()
    mempool: MemPoolSection = MemPoolSection()
    engine: EngineSection = EngineSection()
    scheduler: SchedulerSection = SchedulerSection()
    security: SecuritySection = SecuritySection()
    metrics: MetricsSection = MetricsSection()
    tracing: TracingSection = TracingSection()
    log: LogSection = LogSection()
    topology: str = "colocated"  # colocated | 2c | NpMd; ignored where `instances` is given
    instances: tuple[InstanceSection, ...] = ()
    tp: int = Field(default=1, ge=1)
    caching: _Caching = None  # None: `on` for colocated, `pd_caching_3` for NpMd
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)


def parse_config(values: Mapping[str, object], *, source: str = "config") -> Config:
    """Returns the config that `values` (a nested mapping) describes.

    Raises:
      ConfigError: an unknown key (with the nearest known one), a wrong type or value; the
        message starts with `source` and the dotted key.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from None


def load_config(
    path: str | None, *, overrides: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Config:
    """Returns the config of file `path` (None: all defaults), `--set` overrides, then flags.

    Args:
      path: A YAML file.
      overrides: `a.b=c` each; c is read as YAML.
      flags: Dotted key -> value; None values are not set.

    Raises:
      ConfigError: an unreadable file, a malformed override, or what `parse_config` raises.
    """
    values = _read_yaml(path) if path else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: allowed: section.key=value")
        source = f"--set {override}"
        _set_dotted(values, key, _parse_yaml(text, source), source=source)
    for key, value in (flags or {}).items():
        if value is not None:
            _set_dotted(values, key, value, source=f"--{key}")
    return parse_config(values, source=path or "config")


def to_mapping(config: Config) -> dict[str, object]:
    """Returns the config as plain nested dicts, as logged at start."""
    return pydantic.TypeAdapter(Config).dump_python(config, mode="json")


def _read_yaml(path: str) -> dict[str, object]:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot read: {reason}") from None
    values = _parse_yaml(text, path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, allowed: a mapping of sections")
    return {str(key): value for key, value in typing.cast(dict[object, object], values).items()}


def _parse_yaml(text: str, source: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def _set_dotted(values: dict[str, object], key: str, value: object, *, source: str) -> None:
    *sections, leaf = key.split(".")
    node: dict[str, object] = values
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {section} is not a section")
        node = typing.cast(dict[str, object], child)
    node[leaf] = value


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: unknown key{_suggestion(problem['loc'])}"
    return f"{path}: got {problem['input']!r}, allowed: {problem['msg']}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    schema: typing.Any = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        hint = typing.get_type_hints(schema)[part]
        schema = next(
            (arg for arg in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(arg)), None
        )
        if schema is None:
            return ""
    names = [field.name for field in dataclasses.fields(schema)]
    near = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f", did you mean {near[0]}?" if near else f", allowed: {', '.join(names)}"
