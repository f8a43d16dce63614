"""Text to token ids and back, with control tokens out of reach of what people write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from trisense.errors import BadInput


class TextTokenizer:
    """A `tokenizers.Tokenizer` with two doors: `plain` for what people write, `control` for what a layout says.

    `reserved` holds the ids that `plain` never yields: every added token, special or not, except runs of white space
    (phi-2 reads indentation with such) and the model's own unknown token, which text without it also becomes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        description = json.loads(tokenizer.to_str())
        # A saved tokenizer may cut or pad what it encodes; a conversation is never cut silently.
        description["truncation"] = description["padding"] = None
        self._control = Tokenizer.from_str(json.dumps(description))
        unknown = description["model"].get("unk_token")
        reserved = set()
        for token in description["added_tokens"]:
            # `encode_special_tokens` reads only special tokens as text, so in this copy all the reserved are special.
            token["special"] = bool(token["special"] or token["content"].strip())
            if token["special"] and token["content"] != unknown:
                reserved.add(int(token["id"]))
        self._plain = Tokenizer.from_str(json.dumps(description))
        self._plain.encode_special_tokens = True
        self.reserved: frozenset[int] = frozenset(reserved)
        self._memo: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TextTokenizer:
        """Reads a `tokenizer.json`. Raises BadInput when it is missing or not one."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected a tokenizer.json")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises plain Exception
            raise BadInput(f"{path}: not a tokenizer.json ({str(error).splitlines()[0]})") from None

    def to_json(self) -> str:
        """The text of the `tokenizer.json` that `from_file` reads back."""
        return self._control.to_str(pretty=False)

    def copy(self) -> Tokenizer:
        """The plain `tokenizers.Tokenizer`, control tokens recognised, for libraries that want one."""
        return Tokenizer.from_str(self.to_json())

    @property
    def size(self) -> int:
        """One more than the highest id of this tokenizer."""
        return max(self._control.get_vocab(with_added_tokens=True).values()) + 1

    def plain(self, text: str) -> list[int]:
        """Ids of something written, none in `reserved`, no bos, no eos: the string of a special token is text."""
        try:
            encoding = self._plain.encode(text, add_special_tokens=False)
        except TypeError:
            # json can spell half of a surrogate pair, which no encoding of text can.
            if not isinstance(text, str):
                raise
            raise BadInput("text: contains half of a surrogate pair, which is no character; remove it") from None
        if self.reserved.isdisjoint(encoding.ids):
            return encoding.ids
        # A vocabulary that lists the very string of a special token still finds it. Cut the text inside it.
        start, end = next(o for i, o in zip(encoding.ids, encoding.offsets, strict=True) if i in self.reserved)
        cut = start + 1 if end - start > 1 else len(text)
        if not 0 < cut < len(text):
            raise BadInput(f"text: this tokenizer reads {text[start:end]!r} only as a control token; remove it")
        return self.plain(text[:cut]) + self.plain(text[cut:])

    def control(self, text: str) -> list[int]:
        """Ids of a layout's own string, special tokens allowed, no bos and no eos. Remembered."""
        ids = self._memo.get(text)
        if ids is None:
            ids = self._memo[text] = tuple(self._control.encode(text, add_special_tokens=False).ids)
        return list(ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids. Ids the tokenizer does not know, such as placeholders in spare rows, give nothing."""
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id(self, token: str) -> int | None:
        """The id of one token's string, or None."""
        return self._control.token_to_id(token)

    def token(self, id: int) -> str | None:
        """The tokenizer's own string of one id, or None."""
        return self._control.id_to_token(int(id))
