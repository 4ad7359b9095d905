"""What a metrics endpoint shows, read back by Prometheus' own parser."""

import json
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 60.0


class Scrape:
    """One answer of an endpoint."""

    def __init__(self, text: str):
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """Of every sample there is, and of families that have none yet."""
        found = {sample.name for sample in self.samples}
        for family in self.families.values():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
            found |= {family.name + end for end in suffixes.get(family.type, ("",))}
        return found

    def sum(self, name: str, **labels: str) -> float:
        """Returns the sum of a name's samples that have all of `labels`."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, label: str) -> Mapping[str, float]:
        """Returns the values of a name by one label, those of 0 left out."""
        found: dict[str, float] = {}
        for sample in self.samples:
            if sample.name == name and sample.value:
                key = sample.labels[label]
                found[key] = found.get(key, 0.0) + sample.value
        return found


def scrape(target: str) -> Scrape:
    """Asks the endpoint at `target` (HOST:PORT)."""
    return Scrape(_get(target, "/metrics"))


def discovered(target: str) -> list[str]:
    """Returns the endpoints that the scheduler's service discovery names."""
    (group,) = json.loads(_get(target, "/targets"))
    return group["targets"]


def _get(target: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{target}{path}", timeout=TIMEOUT_S) as reply:
        return reply.read().decode()
