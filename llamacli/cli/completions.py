"""Completion scripts for bash, zsh and fish, written from the tree of commands.

    python -m llamacli.cli.completions zsh              print one
    python -m llamacli.cli.completions --write DIR      write all, under the names shells expect

The scripts are plain shell: a TAB starts no Python and asks no network. A model completes to
folders and to what the Hugging Face cache holds.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llamacli.cli.commands import app


class Value(StrEnum):
    """What follows an option or stands as an argument."""

    NOTHING = "nothing"
    TEXT = "text"
    CHOICE = "choice"
    FILE = "file"
    MODEL = "MODEL"  # these two are metavars
    REPO = "REPO"


@dataclass(frozen=True)
class Option:
    """One option: its names, short before long, and what follows it."""

    names: list[str]
    help: str
    value: Value
    choices: list[str]
    repeatable: bool


@dataclass(frozen=True)
class Command:
    """One command, or the program itself."""

    name: str
    help: str
    options: list[Option]
    argument: Value


def read_tree() -> tuple[Command, list[Command]]:
    """The program, and its commands."""
    group: Any = typer.main.get_command(app)
    ctx = typer.Context(group, info_name="llamacli", **group.context_settings)
    commands = [_command(c, typer.Context(c, parent=ctx)) for c in group.commands.values()]
    return _command(group, ctx), commands


def _command(command: Any, ctx: typer.Context) -> Command:
    params = command.get_params(ctx)
    arguments = [_value(p) for p in params if p.param_type_name == "argument"]
    options = [p for p in params if p.param_type_name == "option" and not p.hidden]
    return Command(
        name=command.name,
        help=command.get_short_help_str(limit=100).rstrip("."),
        options=[_option(param) for param in options],
        argument=arguments[0] if arguments else Value.NOTHING,
    )


def _option(param: Any) -> Option:
    return Option(
        names=sorted(param.opts, key=len),
        help=param.help.rstrip("."),
        value=_value(param),
        choices=[str(choice) for choice in param.type_descriptor.choices or ()],
        repeatable=param.multiple,
    )


def _value(param: Any) -> Value:
    if getattr(param, "is_flag", False):
        return Value.NOTHING
    if param.metavar in (Value.MODEL, Value.REPO):
        return Value(param.metavar)
    if param.type_descriptor.choices:
        return Value.CHOICE
    is_file = param.type_descriptor.is_path or param.metavar in ("FILE", "DIR")
    return Value.FILE if is_file else Value.TEXT


def _words(command: Command) -> str:
    return " ".join(name for option in command.options for name in option.names)


# ------------------------------------------------------------------------------------------- bash

_BASH = """\
# bash completion for llamacli; written by python -m llamacli.cli.completions

_llamacli_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_llamacli_files() {
    compopt -o default 2>/dev/null
}

_llamacli_models() {
    local hub=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub} model
    for model in "$hub"/models--*/; do
        model=${model%/} model=${model##*/models--} model=${model//--//}
        [[ $model != "*" && $model == "$cur"* ]] && COMPREPLY+=("$model")
    done
}

_llamacli() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= word
    if [[ $cur == "=" ]]; then # bash takes --name=value apart
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word != -* ]] && command=$word && break
    done
    COMPREPLY=()
    case "$command $prev" in
@VALUES@
    esac
    case "$command" in
@COMMANDS@
    esac
}

complete -F _llamacli llamacli
"""


def bash(program: Command, commands: list[Command]) -> str:
    """The script for bash 4 and later."""
    names = " ".join(command.name for command in commands)
    values = [line for command in commands for line in _bash_values(command)]
    bodies = [f'        "") _llamacli_words "{names} {_words(program)}" ;;']
    bodies += [_bash_command(command) for command in commands]
    return _BASH.replace("@VALUES@", "\n".join(values)).replace("@COMMANDS@", "\n".join(bodies))


def _bash_values(command: Command) -> Iterator[str]:
    for option in command.options:
        if option.value is not Value.NOTHING:
            pattern = " | ".join(f'"{command.name} {name}"' for name in option.names)
            yield f"        {pattern}) {_bash_action(option.value, option.choices)}return ;;"


def _bash_action(value: Value, choices: list[str]) -> str:
    actions = {
        Value.CHOICE: f'_llamacli_words "{" ".join(choices)}"; ',
        Value.FILE: "_llamacli_files; ",
        Value.MODEL: "compopt -o plusdirs 2>/dev/null; _llamacli_models; ",
        Value.REPO: "_llamacli_models; ",
    }
    return actions.get(value, "")


def _bash_command(command: Command) -> str:
    action = _bash_action(command.argument, [])
    other = f" else {action}fi" if action else " fi"
    words = f'_llamacli_words "{_words(command)}";'
    return f"        {command.name}) if [[ $cur == -* ]]; then {words}{other} ;;"


# -------------------------------------------------------------------------------------------- zsh

_ZSH = """\
#compdef llamacli
# zsh completion for llamacli; written by python -m llamacli.cli.completions

_llamacli_models() {
    _alternative 'folders:folder:_files -/' 'models:downloaded model:_llamacli_repositories'
}
_llamacli_repositories() {
    local hub=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}
    local -a models=("$hub"/models--*(N/:t))
    models=(${${models#models--}//--//})
    compadd -a models
}

_llamacli() {
    local context state state_descr line
    local -A opt_args
    local -a commands=(
@NAMES@
    )
    _arguments -C \\
@PROGRAM@
        '1:command:->command' '*::argument:->arguments' && return
    case $state in
        command) _describe command commands ;;
        arguments)
            case $line[1] in
@COMMANDS@
            esac ;;
    esac
}

if [[ $funcstack[1] == _llamacli ]]; then
    _llamacli "$@"
else
    compdef _llamacli llamacli
fi
"""
_ZSH_ACTIONS = {
    Value.TEXT: " ",
    Value.FILE: "_files",
    Value.MODEL: "_llamacli_models",
    Value.REPO: "_llamacli_repositories",
}


def zsh(program: Command, commands: list[Command]) -> str:
    """The script for zsh."""
    names = "\n".join(f"        {_quoted(f'{c.name}:{c.help}')}" for c in commands)
    options = "\n".join(f"        {spec} \\" for spec in _zsh_options(program))
    bodies = "\n".join(_zsh_command(command) for command in commands)
    filled = _ZSH.replace("@NAMES@", names).replace("@PROGRAM@", options)
    return filled.replace("@COMMANDS@", bodies)


def _zsh_command(command: Command) -> str:
    specs = _zsh_options(command)
    if command.argument is not Value.NOTHING:
        # For free text do nothing: even a mere message would keep options from being completed.
        action = "{:}" if command.argument is Value.TEXT else _ZSH_ACTIONS[command.argument]
        specs.append(f"'*:{command.argument}:{action}'")
    lines = " \\\n                    ".join(specs)
    return f"                {command.name}) _arguments -s \\\n                    {lines} ;;"


def _zsh_options(command: Command) -> list[str]:
    specs = []
    for option in command.options:
        help = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
        action = _ZSH_ACTIONS.get(option.value, f"({' '.join(option.choices)})")
        value = "" if option.value is Value.NOTHING else f":{option.value}:{action}"
        others = "*" if option.repeatable else f"({' '.join(option.names)})"
        for name in option.names:
            equals = "=" if value and name.startswith("--") else ""  # --name=value, --name value
            specs.append(_quoted(f"{others}{name}{equals}[{help}]{value}"))
    return specs


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ------------------------------------------------------------------------------------------- fish

_FISH = """\
# fish completion for llamacli; written by python -m llamacli.cli.completions

function __llamacli_models
    set -l cache $HOME/.cache
    set -q XDG_CACHE_HOME; and set cache $XDG_CACHE_HOME
    set -l hub $cache/huggingface/hub
    set -q HF_HOME; and set hub $HF_HOME/hub
    set -q HF_HUB_CACHE; and set hub $HF_HUB_CACHE
    set -l models $hub/models--*/
    string replace -r '.*/models--(.*)/$' '$1' $models | string replace -a -- -- /
end

complete -c llamacli -f
"""
_FISH_ACTIONS = {
    Value.NOTHING: "",
    Value.TEXT: " -x",
    Value.FILE: " -r -F",
    Value.MODEL: " -x -a '(__fish_complete_directories (commandline -ct); __llamacli_models)'",
    Value.REPO: " -x -a '(__llamacli_models)'",
}


def fish(program: Command, commands: list[Command]) -> str:
    """The script for fish."""
    lines = [_fish_option("__fish_use_subcommand", option) for option in program.options]
    for command in commands:
        help = _fish_quoted(command.help)
        lines.append(f"complete -c llamacli -n __fish_use_subcommand -a {command.name} -d {help}")
    for command in commands:
        here = f"'__fish_seen_subcommand_from {command.name}'"
        lines += [_fish_option(here, option) for option in command.options]
        if command.argument in (Value.FILE, Value.MODEL, Value.REPO):
            action = _FISH_ACTIONS[command.argument].replace(" -x", "").replace(" -r", "")
            lines.append(f"complete -c llamacli -n {here}{action}")
    return _FISH + "\n".join(lines) + "\n"


def _fish_option(condition: str, option: Option) -> str:
    names = "".join(
        f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names
    )
    action = _FISH_ACTIONS.get(option.value, f" -x -a '{' '.join(option.choices)}'")
    return f"complete -c llamacli -n {condition}{names}{action} -d {_fish_quoted(option.help)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# ------------------------------------------------------------------------------------------- main


class Shell(StrEnum):
    """The shells that are served."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


FILE_NAMES = {Shell.BASH: "llamacli.bash", Shell.ZSH: "_llamacli", Shell.FISH: "llamacli.fish"}
_WRITERS: dict[Shell, Callable[[Command, list[Command]], str]] = {
    Shell.BASH: bash,
    Shell.ZSH: zsh,
    Shell.FISH: fish,
}


def script(shell: Shell) -> str:
    """The completion script for a shell."""
    return _WRITERS[shell](*read_tree())


def main(
    shell: Annotated[Shell | None, typer.Argument(help="Print the script for this shell.")] = None,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Write all scripts.")] = None,
) -> None:
    """Write the completion scripts of llamacli."""
    if shell is not None:
        typer.echo(script(shell), nl=False)
    if write is not None:
        for each, name in FILE_NAMES.items():
            (write / name).write_text(script(each), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
