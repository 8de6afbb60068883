"""Options that the commands of `manyhead stocks` share, and how they become a configuration.

A command decorated with `configured` takes a `Settings` as its first argument; on the command line that
argument is the options below.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhead.errors import InputError

if TYPE_CHECKING:
    from manyhead.stocks.config import Config

Prices = Annotated[
    str | None,
    typer.Option(help="CSV, Parquet, folder of CSVs, Qlib folder, 'skfolio', or 'yfinance:AAPL,MSFT'."),
]
Start = Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD.")]
End = Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD.")]
Sectors = Annotated[str | None, typer.Option(help="CSV with a sector for each symbol.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run.")]
Workers = Annotated[int | None, typer.Option(help="Local processes; as many as there are cores if left out.")]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster ('local' starts one).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]

# in the order of --help
SHARED: dict[str, Any] = {
    "prices": Prices,
    "config": Annotated[Path | None, typer.Option("--config", help="TOML configuration.")],
    "preset": Annotated[
        str | None, typer.Option(help="fast, paper, or official_leaky (for comparison only).")
    ],
    "start": Start,
    "end": End,
    "sectors": Sectors,
    "universe": Annotated[str | None, typer.Option(help="How many of the most traded symbols, or 'all'.")],
    "splits": Annotated[str | None, typer.Option(help="How many of the newest rolling splits, or 'all'.")],
    "seeds": Annotated[
        str | None, typer.Option(help="How many seeds ('2': seeds 0 and 1), or a list ('0,5').")
    ],
    "epochs": Annotated[int | None, typer.Option(help="Most epochs of training.")],
    "others": Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, such as --set model.dim=64; may come again."),
    ],
}


@dataclass(frozen=True)
class Settings:
    """What was given on the command line, by option of `SHARED`; None where an option was left out."""

    options: Mapping[str, Any]

    @property
    def given(self) -> bool:
        """Whether any option was given."""
        return any(self.options.values())

    def config(self, **over: Any) -> "Config":
        """Lay the options over a configuration file over a preset.

        Args:
            over: sections laid over everything, such as `baselines={"names": []}`.

        Raises:
            InputError: if an option or a setting cannot be used.
        """
        from manyhead.stocks.config import build, read_toml

        got = self.options
        sections: dict[str, dict[str, Any]] = {}

        def put(section: str, key: str, value: Any) -> None:
            if value is not None:
                sections.setdefault(section, {})[key] = value

        for key in ("prices", "start", "end", "sectors"):
            put("data", key, got.get(key))
        put("universe", "count", count("--universe", got.get("universe")))
        put("splits", "count", count("--splits", got.get("splits")))
        put("training", "epochs", got.get("epochs"))
        put("training", "seeds", seeds(got.get("seeds")))
        for assignment in got.get("others") or []:
            path, separator, text = assignment.partition("=")
            section, dot, key = path.strip().partition(".")
            if not (separator and dot):
                raise InputError(f"--set takes SECTION.KEY=VALUE, such as model.dim=64; got {assignment!r}")
            put(section, key, value(text.strip()))
        file = got.get("config")
        return build(read_toml(file) if file else {}, sections, over, preset=got.get("preset"))


def configured(*without: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options, as its first argument.

    Args:
        without: options that the command does not have.
        defaults: values of options that are left out on the command line.
    """
    shared = [name for name in SHARED if name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=SHARED[name]
            )
            for name in shared
        ]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            command(Settings({name: values.pop(name) for name in shared}), **values)

        signature = inspect.Signature([*options, *keywords])
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        return called

    return decorate


def count(option: str, text: str | None) -> int | str | None:
    """Read a whole number above zero, or 'all'."""
    if text is None or text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{option} takes a whole number above zero or 'all', got {text!r}")
    return int(text)


def seeds(text: str | None) -> tuple[int, ...] | None:
    """Read a number of seeds, or a list of them."""
    if text is None:
        return None
    from manyhead.demonstration import parse_seeds

    if "," in text:
        return tuple(parse_seeds(text))
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--seeds takes a number of seeds or a list such as 0,1,2; got {text!r}")
    return tuple(range(int(text)))


def value(text: str) -> Any:
    """Read a value as TOML does; what is no TOML value is taken as text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def folder(out: Path | None) -> Path:
    """Return the folder of a run, named by the time if none is given."""
    from datetime import datetime

    return out or Path("runs") / datetime.now().strftime("stocks-%Y%m%d-%H%M%S")
