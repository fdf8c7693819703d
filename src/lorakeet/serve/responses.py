"""The form of OpenAI's responses: one message of text, whole or as the events of a stream.

data in: what is new in the one choice → out: JSON bodies or events. Tools, images and stored responses are not there.
"""

import time
import uuid
from typing import Any

from lorakeet.serve.answers import Delta
from lorakeet.serve.forms import Form, event


class ResponseForm(Form):
    """OpenAI's responses: one message of text."""

    def __init__(self, model: str, instructions: str | None) -> None:
        self.model, self.instructions, self.text = model, instructions, ""
        self.id, self.item_id, self.created = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}", time.time()
        self.sequence, self.is_cut = 0, False

    def response(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        counts = None
        if usage is not None:
            counts = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.is_cut else None,
            "instructions": self.instructions,
            "metadata": {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": None,
            "top_p": None,
            "usage": counts,
            "output": [self.item(status)] if usage is not None else [],
        }

    def item(self, status: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": self.text, "annotations": []}]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def numbered(self, kind: str, **values: Any) -> str:
        one = event({"type": kind, "sequence_number": self.sequence, **values}, kind)
        self.sequence += 1
        return one

    def opening(self, n: int) -> list[str]:
        part = {"type": "output_text", "text": "", "annotations": []}
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        item = {**self.item("in_progress"), "content": []}
        return [
            self.numbered("response.created", response=self.response("in_progress", None)),
            self.numbered("response.output_item.added", output_index=0, item=item),
            self.numbered("response.content_part.added", **where, part=part),
        ]

    def events(self, delta: Delta) -> list[str]:
        self.text += delta.text
        self.is_cut = self.is_cut or delta.finish_reason == "length"
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        fields = {**where, "delta": delta.text, "logprobs": []}
        return [self.numbered("response.output_text.delta", **fields)] if delta.text else []

    def closing(self, usage: dict[str, Any], *, include_usage: bool) -> list[str]:
        status = "incomplete" if self.is_cut else "completed"
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        return [
            self.numbered("response.output_text.done", **where, text=self.text, logprobs=[]),
            self.numbered("response.output_item.done", output_index=0, item=self.item(status)),
            self.numbered(f"response.{status}", response=self.response(status, usage)),
        ]

    def whole(self, parts: list[list[Delta]], usage: dict[str, Any]) -> dict[str, Any]:
        for delta in parts[0]:
            self.events(delta)
        return self.response("incomplete" if self.is_cut else "completed", usage)
