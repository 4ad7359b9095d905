"""The conversations of the demo: several visitors, one system prompt, three turns each."""

import random

from memserve_jax.bench.workload import ChatTurn, Message, Session

NUM_TURNS, OUTPUT_TOKENS = 3, 32
# Each visitor's number is the seed of what they write. Chosen so that no greedy answer of the
# embedded model ever hangs on a near tie (every top-2 gap is at least 0.02): rounding, which
# differs with how a prompt is cut into chunks, cannot change a token.
VISITORS = (9, 10, 12, 16, 17, 20)
FIRST_MESSAGE_CHARACTERS = 420
LATER_MESSAGE_CHARACTERS = 140

# The embedded model's tokenizer makes a token of every byte: these are about 640 shared tokens.
SYSTEM_PROMPT = """\
You are the night librarian of a small harbour town. Visitors write to you from ships and from
lighthouses, often with little time and a bad connection, so answer in plain words and at once.
Name the shelf and the volume first, then the page, then what is to be found there. If a book is
lent out, say until when, and offer the nearest one that is not. Never invent a title. Never send
a visitor to a room that is closed: the map room is closed from ten, the reading room at midnight,
and the cellar whenever the tide is above the third step. If somebody is lost at sea, leave the
books alone and pass the message to the coast guard first."""

_WORDS = (
    "anchor", "tide", "lamp", "chart", "harbour", "letter", "winter", "salt", "rope", "signal",
    "island", "captain", "storm", "ledger", "compass", "engine", "cargo", "lantern", "gull", "bell",
    "fog", "mast", "pilot", "reef", "current", "beacon", "voyage", "sailor", "logbook", "quay",
    "north", "barometer", "morning", "keeper", "window", "paper", "candle", "shelf", "volume",
    "page", "story",
)  # fmt: skip


def demo_sessions() -> list[Session]:
    """Returns the sessions: prompts of more than 1,000 tokens each, from the first turn on."""
    return [demo_session(visitor) for visitor in VISITORS]


def demo_session(visitor: int) -> Session:
    """Returns the conversation of one visitor."""
    source = random.Random(visitor)
    opening = f"Visitor {visitor} writes: {_sentences(source, FIRST_MESSAGE_CHARACTERS)}"
    turns = [
        ChatTurn(
            messages=(Message("system", SYSTEM_PROMPT), Message("user", opening)),
            output_tokens=OUTPUT_TOKENS,
        )
    ]
    for _ in range(NUM_TURNS - 1):
        message = Message("user", _sentences(source, LATER_MESSAGE_CHARACTERS))
        turns.append(ChatTurn(messages=(message,), output_tokens=OUTPUT_TOKENS))
    return Session(session_id=f"visitor-{visitor}", turns=tuple(turns))


def _sentences(source: random.Random, num_characters: int) -> str:
    """Returns at least `num_characters` of made-up sentences."""
    text = ""
    while len(text) < num_characters:
        text += f"{' '.join(source.choices(_WORDS, k=8)).capitalize()}. "
    return text.rstrip()
