"""Command-line options whose mistakes are told in one sentence, with the nearest right key."""

from __future__ import annotations

import difflib
import importlib
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser


class OptionError(ArgumentError):
    """A mistake in the options.

    Args:
        message: What jsonargparse says.
        keys: Keys of the parser that found it.
    """

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(None, message)
        self.keys = list(keys)


class OptionParser(ArgumentParser):
    """jsonargparse's parser, which raises its errors with the keys it knows beside them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an OptionError."""
        parser = getattr(ex, "subcommand_parser", None) or self
        hidden = {"help", "config", "print_config", "==SUPPRESS=="}
        keys = [action.dest for action in parser._actions if action.dest not in hidden]
        raise OptionError(message, [key for key in keys if "." not in key or key[0] != "-"]) from ex


def sentence(error: BaseException, config_files: Sequence[str] = ()) -> str:
    """What went wrong, in one sentence; a mistaken option with the nearest right one.

    Args:
        error: Of any kind; an OptionError's causes are searched for the mistake itself.
        config_files: Configuration files read, to name them.
    """
    if not isinstance(error, ArgumentError):
        return _one_line(_innermost(str(error)))
    whole, causes = str(error), list(_causes(error))
    message = str(causes[-1])
    keys = next((c.keys for c in reversed(causes) if isinstance(c, OptionError) and c.keys), [])
    where = f"{', '.join(config_files)}: " if config_files else ""
    owner = (re.findall(r"class_path '([^']+)'", whole) or [None])[-1]

    unrecognised = re.search(r"[Uu]nrecognized arguments?:? *(\S+)", whole)
    if unrecognised:
        option = unrecognised.group(1).split("=")[0].lstrip("-")
        return f"there is no option --{option}{nearest(option, keys, '--')}"
    unknown = re.search(r"[Oo]ption '([^']+)'", message)
    if unknown and "accept" in message:
        key = unknown.group(1)
        of = f" of {owner}" if owner else ""
        return f"{where}'{key}' is not a key{of}{nearest(key, keys)}"
    missing = re.search(r"module '([^']+)' has no attribute '([^']+)'", message)
    if missing and owner:
        module = importlib.import_module(missing.group(1))
        names = [name for name in dir(module) if name[0].isupper()]
        return f"{where}there is no class {owner}{nearest(missing.group(2), names)}"
    path = ".".join(dict.fromkeys(re.findall(r"Parser key \"([^\"]+)\"", whole)))
    return f"{where}{path + ': ' if path else ''}{_one_line(message)}"


def nearest(name: str, choices: Sequence[str], prefix: str = "") -> str:
    """The end of a sentence: `; did you mean '...'?`, or a full stop when nothing is near."""
    top = list(dict.fromkeys(choice.split(".")[0] for choice in choices))
    first, tail = name.split(".")[0], name.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(name, choices, 1, 0.6)
    if not near and first not in top:
        near = difflib.get_close_matches(first, top, 1, 0.6)
    if not near:
        tails = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
        near = [tails[match] for match in difflib.get_close_matches(tail, list(tails), 1, 0.6)]
    return f"; did you mean '{prefix}{near[0]}'?" if near else "."


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _innermost(message: str) -> str:
    """What a constructor said, out of jsonargparse's list of what an argument could have been."""
    if not message.startswith("Does not validate against any of the Union subtypes"):
        return message
    reasons = re.findall(r"^ *- (.+?)(?=^ *- |^Given value|\Z)", message, re.MULTILINE | re.DOTALL)
    own = [reason for reason in reasons if not reason.startswith(("Expected a", "Does not valid"))]
    return own[0] if own else message


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
