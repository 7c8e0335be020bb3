"""Turns of a conversation in a model that has been extended: the chat template, and ids for who speaks.

The template is the Jinja text that transformers and serving engines render. It writes ``<|video|><|/video|>`` where a
message has a video; what stands between them only a :class:`~tokvid_lm.processor.VideoProcessor` can write, whose
``write_turns`` gives the same ids otherwise. In a rendered template special tokens that a user has typed are special;
the processor keeps them text.
"""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokvid_lm.vocabulary import CLOSE, END_OF_TURN, OPEN, VideoVocabulary

CHAT_TEMPLATE = (
    "{{- bos_token or '' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['user', 'assistant'] -%}"
    "{{- raise_exception('the roles are user and assistant, got ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for piece in message['content'] -%}"
    "{%- if piece['type'] == 'video' -%}"
    f"{{{{- '{OPEN}{CLOSE}' -}}}}"
    "{%- elif piece['type'] == 'text' -%}"
    "{{- piece['text'] -}}"
    "{%- else -%}"
    "{{- raise_exception('a piece of a message is text or video, got ' ~ piece['type']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    f"{{{{- '{END_OF_TURN}' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def set_up_chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: VideoVocabulary) -> None:
    """Give a text tokenizer the chat template, and the model's generation an end at that of a turn."""
    tokenizer.chat_template = CHAT_TEMPLATE
    settings = model.generation_config
    if settings is not None:
        ends = settings.eos_token_id
        known = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
        settings.eos_token_id = [*known, vocabulary.special[END_OF_TURN]]
