"""A byte-level tokenizer in Hugging Face's files: token i < 256 is byte i, then special tokens."""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

NUM_BYTES = 256
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
)
TOKENIZER_SIZE = NUM_BYTES + len(SPECIAL_TOKENS)
BOS, EOS, PAD, END = range(NUM_BYTES, NUM_BYTES + 4)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_tokenizer(directory: str, *, max_context_tokens: int) -> None:
    """Writes tokenizer, chat template and generation settings into a model directory."""
    path = pathlib.Path(directory)
    _tokenizer().save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "model_max_length": max_context_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation_config = {"bos_token_id": BOS, "eos_token_id": [EOS, END], "pad_token_id": PAD}
    for name, content in (
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ):
        (path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tokenizer() -> Tokenizer:
    byte_names = {byte: name for name, byte in _byte_of_name().items()}
    vocab = {byte_names[byte]: byte for byte in range(NUM_BYTES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)  # pyright: ignore[reportUnknownMemberType]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
    )
    return tokenizer


def _byte_of_name() -> dict[str, int]:
    """Returns GPT-2's printable stand-in of each byte: itself, or a code point from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(NUM_BYTES + i): byte for i, byte in enumerate(others)}
