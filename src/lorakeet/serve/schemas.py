"""What requests look like, in OpenAI's and vLLM's names. An unknown key is an error: it would change nothing, silently.

data in: JSON bodies → out: checked objects. Keys that have a meaning here and are out of range are refused; keys that
OpenAI's clients send and that mean nothing here are accepted with the one value that asks for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Strict(BaseModel):
    """Every body: no unknown keys, no guessing of types."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextPart(Strict):
    """A piece of a message; text is the only kind."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None


class FunctionCall(Strict):
    """A call's name and its arguments, as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None


class Function(Strict):
    """What a tool is called with."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool the assistant may call."""

    type: Literal["function"]
    function: Function


class JsonSchema(Strict):
    """A schema with its name."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Drawing(Strict):
    """How tokens are drawn, in every kind of request."""

    model: str = Field(max_length=256)
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    stream: bool | None = False
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None


class Completing(Drawing):
    """What chat and plain completions share."""

    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, however many."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Completing):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(Completing):
    """POST /v1/completions."""

    prompt: str | Annotated[list[int], Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None


class ResponsesRequest(Drawing):
    """POST /v1/responses, in its text form."""

    input: str | Annotated[list[ChatMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    previous_response_id: None = None


class TokenizeRequest(Strict):
    """POST /tokenize and /apply-template: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True


class LoadAdapterRequest(Strict):
    """POST /v1/load_lora_adapter, vLLM's."""

    lora_name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapterRequest(Strict):
    """POST /v1/unload_lora_adapter, vLLM's."""

    lora_name: str = Field(max_length=256)
    lora_int_id: int | None = None


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error's body."""

    error: ErrorDetail
