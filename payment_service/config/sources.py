"""Where settings come from: the environment, and files for secrets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from payment_service.config.settings import Settings, WrongSettings

#: Variables of the processes beside this one whose names resemble one of ours.
_NEIGHBOURS: Final = frozenset({"STRIPE_SIMULATOR_HOST"})
#: How alike a variable must be to count as a misspelt one of ours. STRIPE_API_KEY, which programs
#: of others read, is 0.83 like STRIPE_API_BASE, and DATABASE_USER is 0.88 like DATABASE_URL.
_ALIKE: Final = 0.9
_MOST_BYTES: Final = 65_536


def load_settings() -> Settings:
    """Reads the environment. Raises :class:`WrongSettings` with a sentence for every fault."""
    files = secret_files(os.environ)
    given, faults = _secrets_of(files, os.environ)
    faults += misspelt(os.environ)
    try:
        settings = Settings(**given)  # type: ignore[arg-type]  # texts, which pydantic converts
    except ValidationError as error:
        raise WrongSettings("\n".join([*faults, *_sentences(error)])) from None
    if faults:
        raise WrongSettings("\n".join(faults))
    settings.read_from(files)
    return settings


def secret_files(environment: Mapping[str, str]) -> dict[str, Path]:
    """Returns the file of every secret that is given as NAME_FILE, by its field's name."""
    by_upper = {name.upper(): value for name, value in environment.items() if value}
    return {
        field: Path(by_upper[f"{field.upper()}_FILE"])
        for field in Settings.secret_fields()
        if f"{field.upper()}_FILE" in by_upper
    }


def read_secret(path: Path) -> str:
    """Returns what a file of secrets holds, without the line break at its end.

    Raises ValueError with what is wrong with the file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError):
        raise ValueError("cannot be read as text: check the path and who may read it") from None
    text = text.rstrip("\r\n")
    if not text.strip() or len(text) > _MOST_BYTES:
        raise ValueError("is empty or too long: write the secret and nothing else into it")
    return text


def misspelt(environment: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each variable that resembles one of ours and is none."""
    ours = {name.upper() for name in Settings.model_fields}
    ours |= {f"{field.upper()}_FILE" for field in Settings.secret_fields()}
    given = {name.upper() for name, value in environment.items() if value}
    return [
        f"{name} is no setting: did you mean {meant[0]}? If not, unset it"
        for name in sorted(given - ours - _NEIGHBOURS)
        if (meant := difflib.get_close_matches(name, ours, 1, _ALIKE))
    ]


def _secrets_of(
    files: Mapping[str, Path], environment: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Returns the secrets by their field's names, and the faults of their files."""
    is_set = {name.upper() for name, value in environment.items() if value}
    given, faults = {}, []
    for field, path in files.items():
        name = field.upper()
        if name in is_set:
            faults.append(f"{name} and {name}_FILE are both set: unset one of the two")
            continue
        try:
            given[field] = read_secret(path)
        except ValueError as fault:
            faults.append(f"{name}_FILE: {path} {fault}")
    return given, faults


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = "_".join(str(part) for part in fault["loc"][:1]).upper()
        text = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"{name}: {text}" if name else text)
    return sentences
