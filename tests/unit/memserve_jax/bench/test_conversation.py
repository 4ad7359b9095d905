from memserve_jax.bench.conversation import Conversation
from memserve_jax.bench.workload import ChatTurn, Message, Session, TextTurn, TokenTurn


def test_token_turns_carry_the_answers_own_tokens():
    session = Session(
        session_id="s",
        turns=(
            TokenTurn(token_ids=(1, 2), output_tokens=2),
            TokenTurn(token_ids=(5,), output_tokens=2),
        ),
    )
    conversation = Conversation(session)
    first = conversation.ask()
    conversation.hear((8, 9), "xy")
    second = conversation.ask()
    assert first.session_id == second.session_id == "s"
    assert list(first.token_ids.ids) == [1, 2]
    assert list(second.token_ids.ids) == [1, 2, 8, 9, 5]


def test_text_turns_carry_the_answers_text():
    turns = tuple(TextTurn(text=text, output_tokens=2) for text in ("one ", " two"))
    conversation = Conversation(Session(session_id="s", turns=turns))
    assert conversation.ask().text == "one "
    conversation.hear((8, 9), "xy")
    assert conversation.ask().text == "one xy two"


def test_chat_turns_carry_the_answer_as_a_message():
    turns = (
        ChatTurn(messages=(Message("system", "be kind"), Message("user", "hi")), output_tokens=2),
        ChatTurn(messages=(Message("user", "more"),), output_tokens=2),
    )
    conversation = Conversation(Session(session_id="s", turns=turns))
    assert len(conversation.ask().chat.messages) == 2
    conversation.hear((8, 9), "hello")
    messages = conversation.ask().chat.messages
    assert [(message.role, message.content) for message in messages] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "more"),
    ]
