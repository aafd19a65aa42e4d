"""`llamacli visualize-mask`: stdout, stderr and exit codes."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tests.command_line import PROGRAM, Done, here, in_shell, refused
from tests.probe import environment

NOTE = "llamacli: note: using the small demo model; -m MODEL names another\n"
SENTENCE = "Plants create energy through a process known as"

# Python 3.12 and later warn of a fork beside torch's threads; pexpect starts a program right away.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")


def show(*args: object, stdin: bytes = b"", tty: tuple[str, ...] = (), **variables: str) -> Done:
    return here("visualize-mask", *args, stdin=stdin, tty=tty, **variables)


def record(*args: object, stdin: bytes = b"") -> dict[str, Any]:
    (found,) = show(*args, "--json", stdin=stdin).records
    return found


def cells(*args: object, stdin: bytes = b"") -> list[list[str]]:
    return [row["cells"] for row in record(*args, stdin=stdin)["rows"]]


@pytest.fixture(scope="module")
def llama2(
    llama2_tokenizer_file: Path, noise: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with Llama 2's tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("models") / "llama2"
    folder.mkdir()
    config = json.loads((noise / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32000}))
    (folder / "tokenizer.model").write_bytes(llama2_tokenizer_file.read_bytes())
    return folder


# --------------------------------------------------------------------------------- what is shown


def test_the_documentation_pages_sentence(llama2: Path) -> None:
    text = show(SENTENCE, "-m", llama2).text
    assert "55 of 100 pairs visible, longest reach 9\n" in text
    lines = text.splitlines()
    assert lines[1] == "           0 1 2 3 4 5 6 7 8 9"
    assert lines[2] == "<s>      0 ◆ · · · · · · · · ·"
    assert lines[11] == "·as      9 ■ ■ ■ ■ ■ ■ ■ ■ ■ ◆"
    assert max(map(len, lines)) <= 80


def test_without_a_model_the_demo_model_cuts_the_text_and_a_note_says_so() -> None:
    done = show("The sun")
    assert (done.code, done.err) == (0, NOTE)
    assert "·sun" in done.out.decode()
    assert show("The sun", "-q").err == ""
    assert show("--tokens", 3).err == ""


def test_the_picture_in_the_readme_is_the_programs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"```\n{show('The sun warms the stone', '-q').text}```\n" in readme


def test_every_kind_of_mask_can_be_asked_for() -> None:
    assert cells("--tokens", 3) == [["@..", "#@.", "##@"]]
    assert cells("--tokens", 3, "--sliding-window", 2) == [["@..", "#@.", "/#@"]]
    assert cells("--tokens", "1,2") == [["@.", "-@"], ["@.", "#@"]]
    assert cells("--tokens", "1,2", "--padding", "right") == [["@-", "+@"], ["@.", "#@"]]
    assert cells("--tokens", "1,2", "--packed") == [["@xx", "x@.", "x#@"]]
    assert cells("--tokens", 3, "--prefix-length", 2) == [["@^.", "#@.", "##@"]]
    assert cells("--tokens", 3, "--step", 2) == [["oo@"]]
    assert cells("--tokens", 2, "--static-cache", 3) == [["@._", "#@_"]]
    assert cells("--tokens", 3, "--step", 1, "--static-cache", 3) == [["o@_"]]


def test_lines_of_stdin_are_a_batch_an_argument_is_one_text(tmp_path: Path) -> None:
    def labels(*args: object, stdin: bytes = b"") -> list[str]:
        rows = record("-q", *args, stdin=stdin)["rows"]
        return ["".join(token["label"] for token in row["tokens"]) for row in rows]

    file = tmp_path / "texts.txt"
    file.write_bytes(b"The\nThe sun\n")
    assert labels(stdin=b"The sun\n") == ["<s>·The·sun"]
    assert labels("The", "sun") == ["<s>·The·sun"]
    assert labels(stdin=b"The\nThe sun\n") == ["<pad><s>·The", "<s>·The·sun"]
    assert labels("-f", file) == labels(stdin=b"The\nThe sun\n")
    assert labels("--packed", stdin=b"The\nThe sun") == ["<s>·The<s>·The·sun"]
    (joined,) = labels("The\nsun")
    assert "\\n" in joined


def test_json_is_one_documented_object() -> None:
    found = record("The sun", "-q")
    assert found["schema_version"] == 1
    assert (found["model"], found["revision"], found["attention"]) == ("demo", None, None)
    assert found["rows"][0]["visible"] == 6
    assert record("--tokens", 2)["model"] is None


@pytest.mark.parametrize("ending", ["svg", "html", "txt", "csv", "json"])
def test_a_file_is_written_and_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask.{ending}"
    assert show("--tokens", 3, "-o", path).text == f"{path}\n"
    first = path.read_bytes()
    assert show("--tokens", 3, "-o", path).text == f"{path}\n"
    assert path.read_bytes() == first
    assert [*tmp_path.iterdir()] == [path]


def test_ascii_reaches_the_terminal_and_files(tmp_path: Path) -> None:
    text = show("The é", "--ascii", "-q").out
    assert text.isascii()
    assert b"_The" in text
    for ending in ("txt", "svg"):
        show("The é", "--ascii", "-q", "-o", tmp_path / f"mask.{ending}")
        assert b"_The" in (tmp_path / f"mask.{ending}").read_bytes()


# ------------------------------------------------------------------------------- attention weights


def test_attention_shows_the_models_own_weights(noise: Path) -> None:
    done = show("The sun sees", "-m", noise, "--attention", "--json")
    assert done.code == 0
    assert done.err == f"llamacli: note: loading {noise}: 2 layers of 4 heads\n"
    found = json.loads(done.out)
    assert found["attention"] == {"layer": 1, "head": None}
    (row,) = found["rows"]
    for query, weights in enumerate(row["weights"]):
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert weights[query + 1 :] == [0] * (len(weights) - query - 1)
    other = show("The sun sees", "-m", noise, "--attention", "--json", "--layer", 0, "--head", 3)
    assert json.loads(other.out)["attention"] == {"layer": 0, "head": 3}
    assert json.loads(other.out)["rows"][0]["weights"] != row["weights"]


def test_attention_is_a_heat_map_with_a_scale(noise: Path) -> None:
    text = show("The sun", "-m", noise, "--attention", "-q").out.decode()
    assert text.startswith("attention weights, layer 1 of 0-1, mean of 4 heads; causal mask\n")
    assert "<s>  0 █ · ·" in text
    assert "from 77 %" in text


def test_attention_of_a_step_is_a_line_of_the_whole(noise: Path) -> None:
    def weights(*args: object) -> Any:
        done = show("The sun sees", "-m", noise, "--attention", "--json", *args)
        return json.loads(done.out)["rows"][0]["weights"]

    assert weights("--step", 2) == [weights()[2][:3]]


def test_attention_of_a_batch_leaves_padding_out(noise: Path) -> None:
    done = show("-m", noise, "--attention", "--json", stdin=b"The\nThe sun sees\n")
    for row in json.loads(done.out)["rows"]:
        seen = [[int(weight > 0) for weight in line] for line in row["weights"]]
        assert seen == row["mask"]


def test_attention_that_the_model_does_not_have_is_refused(noise: Path) -> None:
    ask = ("The sun", "-m", noise, "--attention")
    refused(show(*ask, "--layer", 2), "--layer must be 0 … 1 of this model, got 2")
    refused(show(*ask, "--layer", -1), "--layer must be 0 … 1 of this model, got -1")
    refused(show(*ask, "--head", 4), "--head must be 0 … 3 of this model, got 4")
    refused(show("The sun", "--layer", 0), "--layer needs --attention")
    refused(show(*ask, "--sliding-window", 3), "--attention and --sliding-window contradict")
    refused(show("--tokens", 3, "--attention"), "--tokens and --attention contradict")


# -------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize("count", ["0", "-1", "", "x", "3,", "3,0", "1e3", "9" * 30, "1000000001"])
def test_fault_125_no_number_of_tokens_is_usage(count: str) -> None:
    refused(show("--tokens", count), "--tokens must be")


def test_fault_125_a_million_tokens_are_down_sampled_and_it_is_said() -> None:
    text = show("--tokens", 10**6).text
    assert "(density: a character is the visible share of 27,398 by 13,699 pairs)" in text
    assert "about 50.0% of 1,000,000,000,000 pairs visible" in text


def test_fault_125_a_window_wider_than_the_text_is_fine() -> None:
    wide = show("--tokens", 4, "--sliding-window", 10**9).text
    assert wide.splitlines()[1:] == show("--tokens", 4).text.splitlines()[1:]


@pytest.mark.parametrize("color", [{}, {"TERM": "xterm-256color"}, {"COLORTERM": "truecolor"}])
def test_fault_125_a_pipe_gets_plain_text(color: dict[str, str]) -> None:
    assert b"\x1b" not in show("--tokens", 4, **color).out
    assert b"\x1b" in show("--tokens", 4, tty=("stdout",), **color).out
    assert b"\x1b" not in show("--tokens", 4, tty=("stdout",), NO_COLOR="1", **color).out
    assert b"\x1b" in show("--tokens", 4, "--color", "always", **color).out


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_sees_nothing_is_refused(window: int) -> None:
    refused(show("--tokens", 4, "--sliding-window", window), "--sliding-window must be 1 or more")


def test_an_empty_text_is_refused() -> None:
    refused(show(""), "the prompt is empty")
    refused(show(stdin=b"\n"), "line 1 of stdin is empty")
    refused(show(stdin=b"The\n\nsun\n"), "line 2 of stdin is empty")
    done = show(tty=("stdin",))
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("llamacli visualize-mask shows which tokens see which.")


def test_a_text_longer_than_the_context_is_noted_or_refused(noise: Path) -> None:
    done = show("sun " * 200, "-m", noise)
    assert done.code == 0
    assert done.err == "llamacli: note: the text has 202 tokens, the model's context 128\n"
    done = show("sun " * 200, "-m", noise, "--attention")
    refused(done, "the text has 202 tokens, the model's context 128", "shorten it")


def test_what_contradicts_is_refused(tmp_path: Path) -> None:
    refused(show("--tokens", 3, "text"), "--tokens and TEXT contradict each other")
    refused(show("--packed", "--padding", "right", "--tokens", 3), "--packed and --padding")
    refused(show("--json", "-o", tmp_path / "a.svg", "--tokens", 3), "--output and --json")
    refused(show("-o", tmp_path / "a.gif", "--tokens", 3), "ends with .svg")
    refused(show("-o", tmp_path / "b" / "a.svg", "--tokens", 3), "does not exist", code=7)
    refused(show("-m", tmp_path, "text"), "config.json does not exist", code=6)


def test_a_hostile_text_moves_no_cursor_and_wide_labels_keep_columns(llama2: Path) -> None:
    text = "\x1b[2J 漢字 🦙\r\u202e e\u0301 \x9b31m\x00"
    done = show(text, "-m", llama2, tty=("stdout",), NO_COLOR="1")
    screen = pyte.Screen(80, 60)
    pyte.Stream(screen).feed(done.out.decode().replace("\n", "\r\n"))
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert [line.split()[0] for line in lines[5:7]] == ["\\x1b", "["]
    rows = [screen.buffer[y] for y in range(3, 3 + len(lines) - 5)]
    column = min(x for x, char in rows[0].items() if char.data == "◆")
    for number, row in enumerate(rows):
        assert row[column + 2 * number].data == "◆"


# ------------------------------------------------------------------------- speed, a real terminal


@pytest.mark.parametrize("args", [["The sun"], ["--tokens", "9"], ["--tokens", "2000"]])
def test_no_torch_is_imported(args: list[str]) -> None:
    script = (
        "import sys; from llamacli.cli import app; from llamacli.cli.console import Terminal\n"
        "app.run_command_line(sys.argv[1:], Terminal.of_process())\n"
        "heavy = {'torch', 'transformers', 'rich', 'huggingface_hub', 'safetensors', 'PIL'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "visualize-mask", *args],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr.splitlines()[-1] == ""


def screen_of(*args: object, columns: int, lines: int) -> list[str]:
    """What a real terminal shows."""
    child: Any = pexpect.spawn(
        "bash",
        ["-c", shlex.join([*PROGRAM, "visualize-mask", *map(str, args)])],
        dimensions=(lines, columns),
        env=environment(),
        timeout=60,
    )
    screen = pyte.Screen(columns, lines)
    pyte.ByteStream(screen).feed(child.read())
    return [line.rstrip() for line in screen.display]


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_two_thousand_tokens_take_one_screen(columns: int, lines: int) -> None:
    shown = screen_of("--tokens", 2000, columns=columns, lines=lines)
    assert shown[0] == "causal mask"
    assert any(line.startswith("2,001,000 of 4,000,000 pairs visible") for line in shown)
    assert any("(density: " in line for line in shown)
    assert shown[-1] == ""


def test_the_form_follows_the_size_of_the_terminal() -> None:
    assert "39 ■ ■" in "\n".join(screen_of("--tokens", 40, columns=200, lines=50))
    narrow = screen_of("--tokens", 30, columns=80, lines=24)
    assert narrow[3].startswith(" 0 ▀▄")
    assert "(two rows a line, blank is hidden)" in "\n".join(narrow)


def test_stdout_that_nobody_reads_ends_in_silence() -> None:
    done = in_shell("{llamacli} visualize-mask --tokens 3000 | true")
    assert done.code in (0, 141)
    assert done.err == ""
