"""Prompt files: `prompts/<agent>/<version>.yaml`, read at each call and rendered strictly.

A file has these keys:

    description   what the prompt is for
    fields        every value that it takes; each must be used, and no other can be
    lines         for each field that is a list: `each`, the text of one entry, `none`, for an empty list, and where it
                  is wanted `begin`, what stands before the first entry
    value_limit   longest value in characters, 300 where it is not told
    system, user  the two messages

`{{field}}` stands for a value; single braces are ordinary text. Values come from catalogues and users and are
not trusted: `clean` takes from them whatever could end a line or a message.

`{{entity field}}` stands for the text of an item or a query, or for several. Rendered for a hybrid prompt (section 2 of
the report), a message is a list of parts, and entities are parts of their own, which the client replaces by input
embeddings: `{"type": "text", "text": "[entity: white milk]", "entities": ["white milk"]}`, as a trace shows it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DIRECTORY = Path(__file__).parent
VALUE_LIMIT = 300
"""Longest single value in characters; a title of 10,000 characters must not push out the history."""

_PLACEHOLDER = re.compile(r"\{\{\s*(?:(entity)\s+)?(\w+)\s*\}\}")
_BEGIN, _NEXT, _END = "\ue000", "\ue001", "\ue002"
"""Around and between entities while a prompt is filled; `clean` leaves no such character in a value."""
_ENTITIES = re.compile(f"{_BEGIN}([^{_END}]*){_END}")
_CHAT_TOKENS = re.compile(
    r"<prompt_embeds>|<\|[^|>]{0,40}\|>|<\||\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<\uff5c.{0,40}?\uff5c>",
    re.I,
)

ENTITY_SEPARATOR = "; "
"""Between the entities of one part where they are written as text."""

Value = str | int | float | Sequence[Mapping[str, Any]]


class PromptError(Exception):
    """A prompt file is missing or faulty, or was rendered with missing or unknown fields."""


class ListLines(BaseModel):
    """How a list field is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    begin: str = ""
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
    value_limit: int = VALUE_LIMIT
    system: str
    user: str

    @property
    def name(self) -> str:
        """`planner/v1`, as it stands in logs and traces."""
        return f"{self.agent}/{self.version}"

    @model_validator(mode="after")
    def _fields_and_placeholders_agree(self) -> Prompt:
        used = {field for _, field in _PLACEHOLDER.findall(self.system + self.user)}
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

    def render(self, values: Mapping[str, Value], hybrid: bool = False) -> list[BaseMessage]:
        """The system and the user message.

        Args:
            values: exactly the declared fields; a list of mappings for each field in `lines`.
            hybrid: entities are parts of their own instead of text.

        Raises:
            PromptError: a field is missing or unknown, or an entry of a list lacks one.
        """
        if values.keys() != set(self.fields):
            missing, unknown = sorted(set(self.fields) - values.keys()), sorted(values.keys() - set(self.fields))
            raise PromptError(f"prompt {self.name}: missing fields {missing}, unknown fields {unknown}")
        texts = {field: self._text(field, value) for field, value in values.items()}
        system, user = (_content(_fill(part, texts).strip(), hybrid) for part in (self.system, self.user))
        return [SystemMessage(system), HumanMessage(user)]

    def _text(self, field: str, value: Value) -> str:
        if isinstance(value, str | int | float):
            if field in self.lines:
                raise PromptError(f"prompt {self.name}: field {field} takes a list, not {value!r}")
            return clean(str(value), self.value_limit)
        if field not in self.lines:
            raise PromptError(f"prompt {self.name}: field {field} takes one value, not a list")
        lines = self.lines[field]
        try:
            entries = [
                _fill(lines.each, {key: _cleaned(part, self.value_limit) for key, part in entry.items()})
                for entry in value
            ]
        except KeyError as error:
            raise PromptError(f"prompt {self.name}: an entry of {field} has no {error}") from error
        return lines.begin + "\n".join(entries) if entries else lines.none


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


def spell_out(messages: Sequence[BaseMessage], names: Container[str]) -> list[BaseMessage]:
    """A hybrid prompt in which some entities stand in the text all the same."""
    found: list[BaseMessage] = []
    for message in messages:
        parts: list[str | dict[Any, Any]] = []
        for part in message.content:
            if isinstance(part, str) or "entities" not in part:
                parts.append(part)
                continue
            groups = [(text, list(own)) for text, own in groupby(part["entities"], lambda name: name in names)]
            for number, (text, own) in enumerate(groups):
                if number:
                    parts.append({"type": "text", "text": ENTITY_SEPARATOR})
                parts.append({"type": "text", "text": ENTITY_SEPARATOR.join(own)} if text else _entity_part(own))
        whole = isinstance(message.content, str)
        found.append(message if whole else message.model_copy(update={"content": parts}))
    return found


def clean(text: str, limit: int = VALUE_LIMIT) -> str:
    """A value as it may stand in a prompt: one line of `limit` characters without control or chat-template tokens.

    Braces stay: placeholders are only looked for in the prompt file itself. Right-to-left letters stay; the
    invisible characters that reorder their surroundings go.
    """
    visible = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in text)
    visible = "".join(char for char in visible if unicodedata.category(char) not in ("Cf", "Cs", "Co", "Cn"))
    plain = " ".join(visible.split())
    while (stripped := " ".join(_CHAT_TOKENS.sub("", plain).split())) != plain:  # what is left may form a new token
        plain = stripped
    return plain if len(plain) <= limit else plain[: limit - 1] + "\u2026"


def _cleaned(value: object, limit: int) -> str | list[str]:
    if isinstance(value, list | tuple):
        return [text for part in value if (text := clean(str(part), limit))]
    return clean(str(value), limit)


def _fill(text: str, values: Mapping[str, str | list[str]]) -> str:
    def filled(match: re.Match[str]) -> str:
        value = values[match[2]]
        texts = [value] if isinstance(value, str) else value
        if match[1] and any(texts):
            return f"{_BEGIN}{_NEXT.join(texts)}{_END}"
        return ENTITY_SEPARATOR.join(texts)

    return _PLACEHOLDER.sub(filled, text)


def _content(text: str, hybrid: bool) -> str | list[str | dict[Any, Any]]:
    """A filled text as the content of a message: parts where entities are to stand alone."""
    pieces = _ENTITIES.split(text)  # text, entities, text, entities ..., text
    if len(pieces) == 1 or not hybrid:
        return "".join(pieces).replace(_NEXT, ENTITY_SEPARATOR)
    parts: list[str | dict[Any, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append(_entity_part(piece.split(_NEXT)))
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _entity_part(entities: list[str]) -> dict[Any, Any]:
    shown = ENTITY_SEPARATOR.join(f"[entity: {entity}]" for entity in entities)
    return {"type": "text", "text": shown, "entities": entities}
