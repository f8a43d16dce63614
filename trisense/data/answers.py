"""How answers are prepared before a model learns them, as the five systems do."""

from __future__ import annotations

import re
import string

from trisense.chat import Conversation, Message, Text
from trisense.stage import Answers

# The function words of English; what `ft35` removes so that a small adapter spends its answers on the others.
STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between
    both but by can did do does doing don down during each few for from further had has have having he her
    here hers herself him himself his how i if in into is it its itself just me more most my myself no nor not
    now of off on once only or other our ours ourselves out over own s same she should so some such t than
    that the their theirs them themselves then there these they this those through to too under until up very
    was we were what when where which while who whom why will with you your yours yourself yourselves
    """.split()  # noqa: SIM905
)
PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def prepare(conversation: Conversation, answers: Answers) -> Conversation | None:
    """The conversation with its answers as `answers` wants them; None when one is too long, or nothing is left of it.

    Punctuation goes first, then stop words, whatever their case (`ft35`); length is counted after (`tinyclip-phi2`).
    """
    messages: list[Message] = []
    for message in conversation.messages:
        if message.role != "assistant":
            messages.append(message)
            continue
        text = "".join(part.text for part in message.content if isinstance(part, Text))
        text = prepared(text, answers)
        if not text or (answers.longest is not None and len(text) > answers.longest):
            return None
        messages.append(Message(role="assistant", content=(Text(text=text),)))
    return Conversation(messages=tuple(messages))


def prepared(text: str, answers: Answers) -> str:
    """One answer. What is removed leaves single spaces."""
    if not answers.punctuation:
        text = PUNCTUATION.sub(" ", text.replace("'", ""))
    if not answers.stop_words:
        text = " ".join(word for word in text.split() if word.lower().strip(string.punctuation) not in STOP_WORDS)
    return text if answers.punctuation and answers.stop_words else " ".join(text.split())
