"""A small text tokenizer trained on captions, for a language model that starts from nothing.

sentencepiece learns the pieces; what is saved is a plain Hugging Face fast tokenizer that needs neither
sentencepiece nor tokvid. Text goes through it unchanged: nothing is normalised, no blank is put in front, and what
has no piece is spelled in UTF-8 bytes, so any text comes back exactly.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tokvid.errors import ConfigError, DataError

UNKNOWN, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL = (UNKNOWN, BOS, EOS, PAD)
FIXED = len(SPECIAL) + 256
SMALLEST_VOCABULARY = FIXED + 16
# sentencepiece writes a blank as this mark. The pieces here hold the blank itself, so that the mark stays a character
# like any other.
_BLANK_MARK = "\u2581"


def train_text_tokenizer(texts: Sequence[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Learn byte pair merges from ``texts``; at most ``vocab_size`` ids, 4 special and 256 byte ones included.

    The same texts give the same tokenizer. ``vocab_size`` must be at least 276. Few texts may fill fewer ids.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a text vocabulary needs at least {SMALLEST_VOCABULARY} ids (4 special, 256 bytes, some pieces),"
            f" got {vocab_size}"
        )
    if not any(text.strip() for text in texts):
        raise DataError("a text tokenizer is learned from captions, but all of them are empty; give captions")
    pieces = _learn_pieces(texts, vocab_size)
    ids = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=_merges(pieces[FIXED:], ids), byte_fallback=True, fuse_unk=False))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _learn_pieces(texts: Sequence[str], vocab_size: int) -> list[str]:
    """All pieces by id: the special ones, the 256 bytes, then learned ones in the order of their merges, then letters.

    Learned pieces hold real blanks, and none is spelled like a byte piece or a special one.
    """
    lines = _trainable(texts, (vocab_size - FIXED) // 2)
    blob = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=blob,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=UNKNOWN,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            hard_vocab_limit=False,
            max_sentence_length=max(len(line.encode()) for line in lines) + 16,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise DataError(f"sentencepiece cannot learn a text tokenizer from these captions: {error}") from error
    learned = sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue())
    size = learned.get_piece_size()
    fixed = [learned.id_to_piece(number) for number in range(FIXED)]
    known = set(fixed)
    rest = [learned.id_to_piece(number).replace(_BLANK_MARK, " ") for number in range(FIXED, size)]
    return fixed + [piece for piece in dict.fromkeys(rest) if piece not in known]


def _trainable(texts: Sequence[str], letters: int) -> list[str]:
    """The texts as sentencepiece can take them: all but the ``letters`` commonest characters are blanks.

    It takes neither NUL nor lone surrogates, and no alphabet larger than the vocabulary. What is left out here is
    spelled in bytes.
    """
    counts = Counter("".join(texts))
    kept = {letter for letter, _ in counts.most_common(letters) if letter != "\0" and not letter.isspace()}
    blanks = str.maketrans({letter: " " for letter in counts if letter not in kept})
    return [text.translate(blanks) for text in texts]


def _merges(pieces: Sequence[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes one of ``pieces``, in their order: sentencepiece merges any such pair."""
    usable = set(pieces)
    pairs = []
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs.extend(sorted((s for s in splits if usable.issuperset(s)), key=lambda s: (ids[s[0]], ids[s[1]])))
    return pairs
