from memserve_jax.bench.demo_workload import (
    NUM_SESSIONS,
    NUM_TURNS,
    OUTPUT_TOKENS,
    SYSTEM_PROMPT,
    demo_sessions,
)
from memserve_jax.core.embedded import embedded_model_path
from memserve_jax.core.tokenizer import load_tokenizer


def messages(turn):
    return [{"role": message.role, "content": message.content} for message in turn.messages]


def test_prompts_are_long_and_share_most():
    tokenizer = load_tokenizer(embedded_model_path())
    prompts = [tokenizer.encode_chat(messages(s.turns[0])) for s in demo_sessions()]
    assert len(prompts) == NUM_SESSIONS
    assert all(1000 <= len(prompt) < 1300 for prompt in prompts)
    shared = next(i for i in range(2000) if len({prompt[i] for prompt in prompts}) > 1)
    assert shared >= 512


def test_sessions_differ_and_repeat():
    sessions = demo_sessions()
    assert sessions == demo_sessions() != demo_sessions(seed=1)
    assert len({session.turns[0].messages[1].content for session in sessions}) == NUM_SESSIONS
    for session in sessions:
        assert len(session.turns) == NUM_TURNS
        assert all(turn.output_tokens == OUTPUT_TOKENS for turn in session.turns)
        assert session.turns[0].messages[0].content == SYSTEM_PROMPT
        assert [message.role for turn in session.turns[1:] for message in turn.messages] == [
            "user"
        ] * (NUM_TURNS - 1)
