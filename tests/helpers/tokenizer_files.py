"""Small tokenizer files of every kind, as model directories hold them."""

import functools
import io
import json
import pathlib
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_LINES = ["hello world this is a test of the thing", "the quick brown fox  jumps", "a b c  d"]


def write_config(folder: pathlib.Path, **values: Any) -> None:
    """Writes `tokenizer_config.json` with BOS and EOS and `values`."""
    config = {"bos_token": BOS, "eos_token": {"content": EOS}, **values}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_byte_level(folder: pathlib.Path, *, adds_bos: bool = False) -> None:
    """Byte-level BPE with a few merges, special tokens and added ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = [("h", "e"), ("l", "l"), ("Ã", "©"), ("â", "Ĥ"), ("Ġ", "w")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer)
    if adds_bos:
        bos = tokenizer.token_to_id(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_byte_fallback(folder: pathlib.Path) -> None:
    """Llama-2 style: `▁` for spaces, `<0xE2>` tokens for what the vocabulary lacks."""
    vocabulary = {"<unk>": 0}
    vocabulary |= {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁h", "▁▁", "é", "€", "�"]:
        vocabulary[piece] = len(vocabulary)
    model = models.BPE(
        vocab=vocabulary, merges=[("▁", "h"), ("▁", "▁")], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    _add_tokens(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_metaspace(folder: pathlib.Path) -> None:
    """`▁` for spaces, taken out by the Metaspace decoder."""
    pieces = ["▁", *"abcdefgh", "▁a", "▁b", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _add_tokens(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_word_piece(folder: pathlib.Path) -> None:
    """Words with `##` continuations."""
    pieces = ["[UNK]", "a", "##b", "c", "##d", ".", "!", "n", "'", "##t"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_sentence_piece(folder: pathlib.Path, *, removes_spaces: bool = False) -> None:
    """A trained sentencepiece model with byte fallback."""
    (folder / "tokenizer.model").write_bytes(_sentence_piece(removes_spaces))


@functools.cache
def _sentence_piece(removes_spaces: bool) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_LINES * 50),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        model_type="bpe",
        remove_extra_whitespaces=removes_spaces,
        minloglevel=5,
        num_threads=1,
    )
    return model.getvalue()


def _add_tokens(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("naïve x"), AddedToken("日本")])
