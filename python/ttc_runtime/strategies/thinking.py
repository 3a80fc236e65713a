"""Chains of thought that are steered on the way: pieces shared by several strategies."""

from __future__ import annotations

from ttc_runtime.branch import Branch


def tokens_before(branch: Branch, mark: str) -> int:
    """Generated tokens in front of the `mark` that a branch ends with; all if there is none."""
    tokens, decode = branch.tokens, branch.search.policy.decode
    first = max(0, len(tokens) - 4 * len(mark) - 8)  # a character may take four tokens
    end = len(tokens)
    if mark not in decode(tokens[first:]):
        return end
    while end > first and mark in decode(tokens[first:end]):
        end -= 1
    kept = decode(tokens[first:]).rfind(mark)
    while end > first and len(decode(tokens[first:end])) > kept:
        end -= 1
    return end


def ends_with_mark(branch: Branch, mark: str) -> bool:
    """Whether a mark stands at the end of a branch's text, white space aside."""
    return bool(mark) and branch.text.rstrip().endswith(mark.rstrip())


def without_end(branch: Branch, mark: str) -> Branch:
    """A branch that goes on where this one ended its thoughts, with the mark or end of text."""
    at = tokens_before(branch, mark) if ends_with_mark(branch, mark) else len(branch.tokens)
    if branch.stop_reason == "eos" and at == len(branch.tokens):
        at -= 1
    return branch.fork(1, at)[0]
