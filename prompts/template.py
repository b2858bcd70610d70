"""Prompt files: `prompts/<agent>/<version>.yaml`, read at each call and rendered strictly.

A file has these keys:

    description   what the prompt is for
    fields        every value that it takes; each must be used, and no other can be
    lines         for each field that is a list: `each`, the text of one entry, and `none`, for an empty list
    system, user  the two messages

`{{field}}` stands for a value; single braces are ordinary text. Values come from catalogues and users and are
not trusted: `clean` takes from them whatever could end a line or a message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DIRECTORY = Path(__file__).parent
VALUE_LIMIT = 300
"""Longest single value in characters; a title of 10,000 characters must not push out the history."""

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_CHAT_TOKENS = re.compile(
    r"<\|[^|>]{0,40}\|>|<\||\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<\uff5c.{0,40}?\uff5c>", re.I
)

Value = str | int | float | Sequence[Mapping[str, Any]]


class PromptError(Exception):
    """A prompt file is missing or faulty, or was rendered with missing or unknown fields."""


class ListLines(BaseModel):
    """How a list field is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    each: str
    none: str


class Prompt(BaseModel):
    """One version of one agent's prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str
    version: str
    description: str
    fields: tuple[str, ...]
    lines: dict[str, ListLines] = Field(default_factory=dict)
    system: str
    user: str

    @property
    def name(self) -> str:
        """`planner/v1`, as it stands in logs and traces."""
        return f"{self.agent}/{self.version}"

    @model_validator(mode="after")
    def _fields_and_placeholders_agree(self) -> Prompt:
        used = set(_PLACEHOLDER.findall(self.system + self.user))
        if used != set(self.fields):
            undeclared, unused = sorted(used - set(self.fields)), sorted(set(self.fields) - used)
            raise ValueError(f"placeholders not declared in fields: {undeclared}; fields not used: {unused}")
        if stray := sorted(set(self.lines) - set(self.fields)):
            raise ValueError(f"lines for what is no field: {stray}")
        return self

    def edited(self, system: str) -> Prompt:
        """The same prompt with another system text, as a person tries one in Studio; the name says so."""
        document = self.model_dump() | {"system": system, "version": f"{self.version}+edited"}
        try:
            return Prompt.model_validate(document)
        except ValidationError as error:
            raise PromptError(f"the edited system text of {self.name} does not fit: {error}") from error

    def render(self, values: Mapping[str, Value]) -> list[BaseMessage]:
        """The system and the user message.

        Args:
            values: exactly the declared fields; a list of mappings for each field in `lines`.

        Raises:
            PromptError: a field is missing or unknown, or an entry of a list lacks one.
        """
        if values.keys() != set(self.fields):
            missing, unknown = sorted(set(self.fields) - values.keys()), sorted(values.keys() - set(self.fields))
            raise PromptError(f"prompt {self.name}: missing fields {missing}, unknown fields {unknown}")
        texts = {field: self._text(field, value) for field, value in values.items()}
        return [SystemMessage(_fill(self.system, texts).strip()), HumanMessage(_fill(self.user, texts).strip())]

    def _text(self, field: str, value: Value) -> str:
        if isinstance(value, str | int | float):
            if field in self.lines:
                raise PromptError(f"prompt {self.name}: field {field} takes a list, not {value!r}")
            return clean(str(value))
        if field not in self.lines:
            raise PromptError(f"prompt {self.name}: field {field} takes one value, not a list")
        lines = self.lines[field]
        try:
            entries = [_fill(lines.each, {key: clean(str(part)) for key, part in entry.items()}) for entry in value]
        except KeyError as error:
            raise PromptError(f"prompt {self.name}: an entry of {field} has no {error}") from error
        return "\n".join(entries) if entries else lines.none


def load_prompt(agent: str, version: str, directory: Path = DIRECTORY) -> Prompt:
    """Read `<directory>/<agent>/<version>.yaml`. Reads a file: call it in a thread from async code.

    Raises:
        PromptError: there is no such file, or it is faulty.
    """
    path = directory / agent / f"{version}.yaml"
    if not path.is_file():
        versions = sorted(file.stem for file in (directory / agent).glob("*.yaml"))
        raise PromptError(f"{path} is missing; versions of {agent}: {', '.join(versions) or 'none'}")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Prompt.model_validate({"agent": agent, "version": version} | document)
    except (yaml.YAMLError, TypeError, ValidationError) as error:
        raise PromptError(f"{path} is not a valid prompt file: {error}") from error


def clean(text: str) -> str:
    """A value as it may stand in a prompt: one line without control or chat-template tokens, `VALUE_LIMIT` at most.

    Braces stay: placeholders are only looked for in the prompt file itself. Right-to-left letters stay; the
    invisible characters that reorder their surroundings go.
    """
    visible = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in text)
    visible = "".join(char for char in visible if unicodedata.category(char) not in ("Cf", "Cs", "Co", "Cn"))
    plain = " ".join(visible.split())
    while (stripped := " ".join(_CHAT_TOKENS.sub("", plain).split())) != plain:  # what is left may form a new token
        plain = stripped
    return plain if len(plain) <= VALUE_LIMIT else plain[: VALUE_LIMIT - 1] + "\u2026"


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
