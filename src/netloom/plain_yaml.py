"""YAML as plain values, from files that need not be trusted."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """No tags that make objects, and no aliases: nine lines of those can mean more values than fit any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", place)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The plain value that `text` holds; None for an empty one.

    Raises:
        ValueError: It is no YAML, has tags or aliases, is nested too deeply, or holds an impossible number or date.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
