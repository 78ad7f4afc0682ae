"""What `--help` says of a script: its configuration's text, with the groups that it has."""

from __future__ import annotations

import textwrap
from string import Template

from mistakes import chosen_groups, composed, options_of


def help_text(name: str, overrides: list[str], *, job: str, docstring: str | None) -> str:
    """The text of `configs/<name>.yaml`, with a line for each group that the command chooses from.

    Where the text is another script's, what it does and how it is started, the first two
    paragraphs, are those of the script's own docstring.

    Args:
        name: of the configuration.
        overrides: of the command line.
        job: name of the script.
        docstring: of the script.
    """
    told = composed(name, overrides, with_hydra=True).hydra.help
    text = str(told.template)
    if docstring is not None and job != told.app_name:
        does, command = docstring.strip().split("\n\n")
        text = "\n\n".join([does, textwrap.indent(command, "  "), text.split("\n\n", 2)[2]])
    groups = [
        f"{group}: {', '.join(options_of(group.partition('@')[0]))}"
        for group in chosen_groups(name, overrides)
    ]
    return Template(text).substitute(APP_CONFIG_GROUPS="\n".join(groups)).rstrip() + "\n"
