"""From a problem and its steps to the tokens a reward model reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ttc_runtime.rewards.spec import RewardSpec

_PLACE = re.compile(r"\{(problem|step|number|eos|close)\}")


@dataclass(frozen=True)
class Written:
    """Tokens of a problem and its first `steps` steps.

    From `open_start` on they are `open_text`, plain text that more may be joined to: its last
    tokens may change then.

        tokens  <|im_start|> ... problem ... <|im_end|> ... step 1 <extra_0> step 2
                special tokens are taken by id, text between them cut by itself ^ open_start
    """

    tokens: list[int]
    open_start: int = 0
    open_text: str = ""
    steps: int = 0


class Format:
    """A spec and a tokenizer.

    Text of the user is tokenized as text, whatever it looks like: special tokens in it lose their
    meaning. Where the step tag is an ordinary token, text that holds it is refused. Raises
    ValueError for a tokenizer that lacks or splits the tag, or has no chat template that is needed.
    """

    def __init__(self, spec: RewardSpec, tokenizer) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        names = sorted({*special, *added}, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._close = tokenizer.eos_token or ""
        self._first, self._step = spec.first_step or spec.step, spec.step
        self._prompt = spec.prompt
        self.tag_id: int | None = None
        if spec.messages is not None and (tokenizer.chat_template or spec.prompt is None):
            self._read_chat_template()
        self.tag_id = None if spec.tag is None else self._find_tag(spec.tag)
        self.extend(self.extend(self.prompt("1"), "1"), "2")  # shows a tokenizer that cannot

    def prompt(self, problem: str) -> Written:
        """The tokens before the first step. Raises ValueError for a problem that holds the tag."""
        bos = self.tokenizer.bos_token_id
        start = [bos] if self.spec.begin_of_text and bos is not None else []
        written = Written(start, len(start))
        return self._write(written, self._prompt or "", {"problem": problem}, "the problem", 0)

    def extend(self, before: Written, step: str) -> Written:
        """With one more step; it is scored at the last token, or behind `probe`.

        Raises ValueError naming the step if it is empty, holds the tag, or would change the tokens
        at which an earlier step was scored.
        """
        number = before.steps + 1
        body = step.strip() if self.spec.strip else step
        if not body.strip():
            raise ValueError(f"reward spec {self.spec.name}: step {number} is empty, got {step!r}")
        if self.spec.newlines is not None:
            body = re.sub(r"\s*\n\s*", self.spec.newlines, body)
        values, where = {"step": body, "number": str(number)}, f"step {number}"
        template, end = self._step if before.steps else self._first, self.spec.step_end
        if self.spec.tokenize == "pieces":
            written = self._write(before, template, values, where, number)
            written = self._write(written, end, {}, where, number)
        else:
            written = self._write(before, template + end, values, where, number)
        if self.tag_id is not None and written.tokens[-1] != self.tag_id:
            raise ValueError(
                f"reward spec {self.spec.name}: the tokenizer splits the step tag "
                f"{self.spec.tag!r} behind step {number}, or joins it to the text: expected token "
                f"{self.tag_id}, got {written.tokens[-1]}"
            )
        read_before = before.steps > 0 and self.spec.probe is None
        if read_before and written.tokens[: len(before.tokens)] != before.tokens:
            raise ValueError(
                f"reward spec {self.spec.name}: step {number} changes how the end of step "
                f"{before.steps} is tokenized, where that was scored"
            )
        return Written(written.tokens, written.open_start, written.open_text, number)

    def probe(self, written: Written) -> tuple[int, list[int]]:
        """How many tokens to keep on the scratch branch, and those to append.

        All are kept unless the probe's text joins the last ones.
        """
        values, steps = {"number": str(written.steps)}, written.steps
        probed = self._write(written, self.spec.probe or "", values, "the probe", steps).tokens
        keep = common_prefix(written.tokens, probed)
        return keep, probed[keep:]

    def token(self, text: str, which: int = -1) -> int:
        """The id of a text's last token, or of another one."""
        return self._encode(text)[which]

    def _write(
        self, before: Written, template: str, values: dict, where: str, steps: int
    ) -> Written:
        """Append a template with values filled in; the text then holds so many steps."""
        if not template:
            return before
        values = {**values, "eos": self.tokenizer.eos_token or "", "close": self._close}
        tokens, text = before.tokens[: before.open_start], before.open_text
        for i, part in enumerate(_PLACE.split(template)):
            if i % 2 and part not in ("eos", "close"):
                text += values[part]
                continue
            literal = values[part] if i % 2 else part
            pieces = self._special.split(literal) if self._special else [literal]
            for j, piece in enumerate(pieces):
                if j % 2 == 0:
                    text += piece
                    continue
                tokens = tokens + self._plain(text, where, steps)
                tokens, text = [*tokens, self.tokenizer.convert_tokens_to_ids(piece)], ""
        start, tokens = len(tokens), tokens + self._plain(text, where, steps)
        if self.spec.tokenize == "pieces":
            return Written(tokens, len(tokens), "", before.steps)
        return Written(tokens, start, text, before.steps)

    def _plain(self, text: str, where: str, steps: int) -> list[int]:
        """Tokens of text between special tokens; the tag may only stand where it closes a step."""
        ids = self._encode(text)
        closing = 0 if self._is_special(self.spec.tag or "") else steps
        if self.tag_id is not None and ids.count(self.tag_id) > closing:
            raise ValueError(
                f"reward spec {self.spec.name}: {where} holds the step tag {self.spec.tag!r}, "
                "which would pass for the end of a step"
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(text, **options)["input_ids"]

    def _is_special(self, text: str) -> bool:
        return self._special is not None and self._special.fullmatch(text) is not None

    def _find_tag(self, tag: str) -> int:
        if self._is_special(tag):
            return self.tokenizer.convert_tokens_to_ids(tag)
        ids = self._encode(tag)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ValueError(
                f"reward spec {self.spec.name}: the tokenizer must have the step tag {tag!r} as "
                f"one token, got {ids}"
            )
        return ids[0]

    def _read_chat_template(self) -> None:
        """Prompt, steps and what follows them, as the tokenizer's chat template puts them."""
        spec = self.spec
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"reward spec {spec.name}: needs a chat template, the tokenizer has none"
            )
        messages = list(spec.messages or [])
        if spec.answer is not None:
            turns = [{"role": "assistant", "content": "{answer}"}]
            turns = [*messages, *turns, {"role": "user", "content": "{step}"}, *turns]
            before, between, _ = self._render(turns, False).split("{step}")
            to_answer, after = between.split("{answer}")
            self._prompt, lead = before.split("{problem}")
            self._prompt += "{problem}"
            self._first = lead + "{step}" + to_answer
            self._step = spec.answer + after + "{step}" + to_answer
            return
        inside = any("{steps}" in message["content"] for message in messages)
        if not inside:
            messages.append({"role": "assistant", "content": "{steps}"})
        self._prompt, self._close = self._render(messages, inside).split("{steps}")

    def _render(self, messages: list[dict], generate: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate
        )


def common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the common prefix of two lists of tokens."""
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
