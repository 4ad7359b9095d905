"""Spans that processes wrote to files."""

import json
import pathlib
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """One span, with those below it."""

    name: str
    process: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    began: str  # ISO 8601, all of one zone and width: they sort as text
    ended: str
    attributes: dict[str, Any]
    status: str
    children: list["Span"] = field(default_factory=list)

    def find(self, name: str) -> list["Span"]:
        """Returns every span of that name in this tree."""
        below = [found for child in self.children for found in child.find(name)]
        return [self, *below] if self.name == name else below

    def check_nested(self) -> None:
        """Asserts that every span lies within its parent.

        The answering of a call may end a moment after its caller has all of the answer.
        """
        for child in self.children:
            ends_in_time = child.ended <= self.ended or child.kind == "SERVER"
            assert self.began <= child.began <= min(child.ended, self.ended) and ends_in_time, (
                f"{child.name} {child.began}..{child.ended} is not within "
                f"{self.name} {self.began}..{self.ended}"
            )
            child.check_nested()

    def shape(self) -> Any:
        """Returns the names of the tree: (name, children in the order of their beginning)."""
        ordered = sorted(self.children, key=lambda child: (child.began, child.ended))
        return (self.name, *(child.shape() for child in ordered))


def read_spans(folder: pathlib.Path) -> list[Span]:
    """Returns every span of every process."""
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return [_from_json(json.loads(line)) for line in lines]


def trees(spans: list[Span]) -> list[Span]:
    """Returns the roots, children attached: spans whose parent nobody here made."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "one id twice"
    roots = []
    for span in spans:
        parent = by_id.get(span.parent_id or "")
        if parent is None:
            roots.append(span)
        else:
            assert parent.trace_id == span.trace_id
            parent.children.append(span)
    return roots


def _from_json(raw: dict[str, Any]) -> Span:
    parent = raw["parent_id"]
    return Span(
        name=raw["name"],
        process=raw["resource"]["attributes"]["service.name"],
        kind=raw["kind"].removeprefix("SpanKind."),
        trace_id=raw["context"]["trace_id"].removeprefix("0x"),
        span_id=raw["context"]["span_id"].removeprefix("0x"),
        parent_id=None if parent is None else parent.removeprefix("0x"),
        began=raw["start_time"],
        ended=raw["end_time"],
        attributes=raw["attributes"],
        status=raw["status"]["status_code"],
    )
