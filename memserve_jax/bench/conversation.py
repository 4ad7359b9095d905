"""A session under way: the next prompt is the history, with the real answers, and new words."""

from memserve_jax.bench.workload import ChatTurn, Message, Session, TextTurn, TokenTurn, Turn
from memserve_jax.proto import memserve_pb2 as pb


class Conversation:
    """Builds the prompts of one session, turn after turn.

    Owned by the one task that plays the session: `ask`, then `hear` its answer, and so on.
    """

    def __init__(self, session: Session):
        self._session = session
        self._num_asked = 0
        self._token_ids: list[int] = []
        self._text = ""
        self._messages: list[Message] = []

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The session's turns."""
        return self._session.turns

    def ask(self) -> pb.GenerateRequest:
        """Returns the next turn's request: session, prompt and nothing else."""
        turn = self._session.turns[self._num_asked]
        self._num_asked += 1
        request = pb.GenerateRequest(session_id=self._session.session_id)
        match turn:
            case TokenTurn(token_ids=token_ids):
                self._token_ids += token_ids
                request.token_ids.ids.extend(self._token_ids)
            case TextTurn(text=text):
                self._text += text
                request.text = self._text
            case ChatTurn(messages=messages):
                self._messages += messages
                request.chat.messages.extend(
                    pb.ChatMessage(role=message.role, content=message.content)
                    for message in self._messages
                )
        return request

    def hear(self, token_ids: tuple[int, ...], text: str) -> None:
        """Adds an answer to the history.

        Token sessions keep the very tokens; text and chat sessions keep the text, which the
        server tokenises anew, so a prefix may match a little less than it could.
        """
        self._token_ids += token_ids
        self._text += text
        self._messages.append(Message("assistant", text))
