"""docs/settings.md, drawn from the table of settings: `python -m cador_trio.settings_page > docs/settings.md`.

Pure text from the one table; a test holds the page against it.
"""

from __future__ import annotations

import sys
from typing import Final

from pydantic.fields import FieldInfo

from cador_trio.settings import Settings, is_secret, shown, unit_of, variable_of

_HEAD: Final = """\
# Settings

For operators. `just docs` draws this page from the table in `cador_trio/settings.py`.

Settings are environment variables. `--env-file FILE` reads more of them from lines of `NAME=value`; the environment
wins. An empty value is an unset one. `cador-trio check` shows the values that hold, secrets masked, and tries what they
point at. A wrong setting stops the start: every finding gets a line, and the exit code is 2. A `CADOR_…` variable that
is no setting is named, in case it is misspelt.

- Seconds may have fractions. Sizes are bytes, or `64KiB`, `100MiB`, `10GiB`.
- Switches are `true` or `false` (also `1`, `0`, `yes`, `no`, `on`, `off`).
- A secret may also come from a file: `NAME_FILE` names it.

| Name | Default | Meaning |
| --- | --- | --- |
"""

_TAIL: Final = """
## Exit codes

| Code | Meaning |
| --- | --- |
| 0 | ended in order |
| 1 | an unexpected error, or the port is taken |
| 2 | wrong settings or wrong usage |
| 3 | `check` or `demo` found that something does not work, or `submit` or `dead-letters` could not do its work |
| 4 | another instance uses the same `CADOR_INSTANCE_ID` |
| 128 + n | a second signal, n, came before the first had been obeyed |
"""


def page() -> str:
    """The whole page."""
    rows = (_row(variable_of(name, field), field) for name, field in Settings.model_fields.items())
    return _HEAD + "".join(rows) + _TAIL


def _row(variable: str, field: FieldInfo) -> str:
    unit = unit_of(field)
    default = "" if field.default_factory is not None else shown(field.default, unit)
    meaning = f"{field.description}; a secret" if is_secret(field) else str(field.description)
    return f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning.replace('|', chr(92) + '|')} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
