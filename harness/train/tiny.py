"""The tiny preset's model and tokenizer: a Qwen2 of a few million parameters, a byte-level BPE of the data's own text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, set_seed

from harness.prompt import CHAT_TEMPLATE
from harness.train.config import TinyModel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORD = re.compile(r"[A-Za-z]+")
BETWEEN = re.compile(r"<[/\w=]+>\n?| ?(?:(?!</?\w+[=>])[^\sA-Za-z0-9])+ ?|\n *| +")
"""What stands between words and digits: a wire tag such as `<parameter=old_str>` with the line end after it; punctuation with the blanks
around it; a line end with its indent."""
MAX_POSITIONS = 32768


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer of the texts' own pieces; any text is representable.

    A word is learnt without the blank before it: it is the same tokens wherever it stands, which a small model learns to copy sooner. The
    commonest pieces between words are tokens of their own, at most a quarter of the vocabulary. Qwen2's way of splitting stays as it is, so
    that whoever loads the checkpoint (`AutoTokenizer` rebuilds that class) reads the same ids.
    """
    texts = list(texts)
    between = Counter(piece for text in texts for piece in BETWEEN.findall(text) if len(piece) > 1)
    pieces = [piece for piece, _ in between.most_common(vocabulary // 4)]
    words = Tokenizer(BPE())
    words.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(pieces),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator((word for text in texts for word in WORD.findall(text)), trainer)
    learnt = json.loads(words.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    return tokenizer


def build_model(options: TinyModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights, in float32."""
    set_seed(seed)
    config = tiny_config(options, len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def tiny_config(options: TinyModel, vocabulary: int) -> Qwen2Config:
    """The model's shape; input and output embeddings are tied."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.feedforward,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=options.deviation,
        bos_token_id=None,
    )
