import hashlib
import pathlib

from memserve_jax.bench.demo_workload import (
    NUM_TURNS,
    OUTPUT_TOKENS,
    SYSTEM_PROMPT,
    VISITORS,
    demo_sessions,
)
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.tokenizer import load_tokenizer

# Of the embedded model for which VISITORS were chosen. Where it changes, choose them anew:
# tests/e2e/test_demo_answers.py (slow) says which of them are no good.
WEIGHTS_SHA256 = "80280bf73e1ac8f8fdc5a5f5507ce546435f440dcb0cc0957a6712934ceb7df8"


def messages(turn):
    return [{"role": message.role, "content": message.content} for message in turn.messages]


def test_prompts_are_long_and_share_most():
    tokenizer = load_tokenizer(embedded_model_path())
    prompts = [tokenizer.encode_chat(messages(s.turns[0])) for s in demo_sessions()]
    assert len(prompts) == len(VISITORS) == 6
    assert all(1000 <= len(prompt) < 1300 for prompt in prompts)
    shared = next(i for i in range(2000) if len({prompt[i] for prompt in prompts}) > 1)
    assert shared >= 512


def test_sessions_differ_and_repeat():
    sessions = demo_sessions()
    assert sessions == demo_sessions()
    assert len({session.turns[0].messages[1].content for session in sessions}) == len(VISITORS)
    for session in sessions:
        assert len(session.turns) == NUM_TURNS
        assert all(turn.output_tokens == OUTPUT_TOKENS for turn in session.turns)
        assert session.turns[0].messages[0].content == SYSTEM_PROMPT
        assert [message.role for turn in session.turns[1:] for message in turn.messages] == [
            "user"
        ] * (NUM_TURNS - 1)


def test_the_visitors_were_chosen_for_this_model():
    weights = pathlib.Path(embedded_model_path(), "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == WEIGHTS_SHA256
