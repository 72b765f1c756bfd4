"""Untrusted texts in messages to a model behind an endpoint."""

import re

# Control tokens of common chat models. Servers that render the chat template as text would interpret them anywhere.
_CONTROL = re.compile(
    r"<(?P<angle>[|\uff5c][^<>\s]*[|\uff5c]|/?(?:s|bos|eos|pad|unk|mask|sop|eop|image|video|audio|img|think|tool_calls?|"
    r"tool_response|(?:start|end)_of_(?:turn|image)))>|\[(?P<square>/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|"
    r"TOOL_RESULTS|THINK|IMG|IMG_BREAK|IMG_END|gMASK|CLS|SEP|PAD|UNK|MASK|BOS|EOS))\]",
    re.IGNORECASE,
)


def without_control_tokens(text: str) -> str:
    """Space out the control tokens of common chat models: `[INST]` becomes `[ INST ]`."""
    return _CONTROL.sub(lambda found: f"< {found['angle']} >" if found["angle"] else f"[ {found['square']} ]", text)


def tagged(name: str, text: str) -> str:
    """A text between tags. The name must be one that the text cannot know, such as a hash of all texts."""
    return f"<{name}>\n{without_control_tokens(text)}\n</{name}>"
