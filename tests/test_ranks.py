"""`--tp` and torchrun as whole programs: one text, one error line, and nobody is left behind."""

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import PROGRAM, Done, here, in_shell, refused, run, start, write_chain
from tests.probe import environment

TEXT = b" moon sees river. The bird follows sun\n"
watched = pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are found in /proc")


def together(*args: object) -> Done:
    """The real program with two ranks."""
    with start(*args, "--tp", 2, stdin=subprocess.DEVNULL) as process:
        out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err.decode())


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    write_chain(folder, ["▁moon", "▁sees"], loop=True, num_attention_heads=2,
                max_position_embeddings=10**6)  # fmt: skip
    return folder


# --------------------------------------------------------------------------------------- one text


def test_the_same_seed_gives_the_same_text(noise: Path) -> None:
    args = ("run", "-m", noise, "--seed", 7, "-n", 24, "--num-samples", 2, "--json", "The sun")
    alone = here(*args).records
    shared = together(*args, "--stats")
    for one, other in zip(alone, shared.records, strict=True):
        assert other["token_ids"] == one["token_ids"]
        assert (one["tp_size"], other["tp_size"]) == (1, 2)
    assert [line for line in shared.err.splitlines() if line.startswith("ranks")] == [
        "ranks        2; the memory is that of rank 0"
    ]


def test_a_damaged_model_is_one_error(noise: Path, tmp_path: Path) -> None:
    for file in noise.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(together("run", "-m", tmp_path, "The sun"), "expected", code=3)


def test_what_cannot_be_done_in_several_processes_is_named(noise: Path) -> None:
    refused(run(noise, "--tp", 2, "--device", "cuda:1", "a"), "--device cuda:1 and --tp")
    for option in (["--device-map", "auto"], ["--max-memory", "cpu=1GiB"],
                   ["--offload-folder", "/tmp"], ["--compile"]):  # fmt: skip
        refused(run(noise, "--tp", 2, *option, "a"), f"--tp and {option[0]} contradict each other")
    refused(run(noise, "--tp", 2, "--task", "text-classification", "a"), "--tp", "--task")
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = here("run", "-m", noise, "--tp", 4, "a", **torchrun)
    refused(done, "--tp 4 and torchrun's 2 processes contradict each other")
    done = here("run", "-m", noise, "--task", "text-classification", "a", **torchrun)
    refused(done, "torchrun has no effect with --task text-classification")
    done = here("run", "-m", noise, "--compile", "a", **torchrun)
    refused(done, "torchrun and --compile contradict each other")


def test_a_plan_is_that_of_each_rank(noise: Path) -> None:
    def plan(*args: object) -> dict[str, int]:
        done = run(noise, "--plan", "--json", "-n", 8, *args, "moon")
        found: dict[str, int] = json.loads(done.out)
        return found

    alone, shared = plan(), plan("--tp", 2)
    assert 0.5 < shared["weights_bytes"] / alone["weights_bytes"] < 0.51
    assert shared["cache_bytes"] * 2 == alone["cache_bytes"]


def test_bench_measures_each_number_of_ranks_in_its_own_processes(noise: Path) -> None:
    args = ("bench", noise, "-p", 8, "-n", 2, "-r", 1, "-t", 2, "-o", "json", "-q", "--tp")
    with start(*args, "1,2") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    rows = json.loads(out)["rows"]
    assert [(row["test"], row["tp"], row["threads"]) for row in rows] == [
        ("pp8", 1, 2),
        ("tg2", 1, 2),
        ("pp8", 2, 2),
        ("tg2", 2, 2),
    ]
    for row, alone in zip(rows, rows[:2] * 2, strict=True):
        speeds = row["tokens_per_second"] / alone["tokens_per_second"]
        assert row["efficiency"] == pytest.approx(speeds)
    refused(here(*args, "1,2", "--versus", "transformers"), "--versus and --tp")


def agents_of_torchrun(count: int, ranks: int, *args: object) -> list["subprocess.Popen[bytes]"]:
    """torchrun for each of so many machines of so many ranks, all on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", count]
    agent += ["--nproc-per-node", ranks, "--local-addr", "127.0.0.1"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    agents = [
        subprocess.Popen(
            [*map(str, agent), "-m", "llamacli", "run", *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo"),
        )
        for _ in range(count)
    ]
    for process in agents:
        assert process.stdin is not None
        process.stdin.write(b"The")
        process.stdin.close()
        process.stdin = None
    return agents


def test_two_agents_of_torchrun_are_one_program(tale: Path) -> None:
    agents = agents_of_torchrun(2, 2, "-m", tale)
    ends = [process.communicate(timeout=120) for process in agents]
    assert [process.returncode for process in agents] == [0, 0], ends
    assert sorted(out for out, _ in ends) == [b"", TEXT]


# --------------------------------------------------------------------------------------- the end


def running(model: Path) -> tuple["subprocess.Popen[bytes]", list[int]]:
    """The program once its ranks write text, and the ranks."""
    process = start("run", "-m", model, "--tp", 2, "-n", "-1", "The", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.read(1)
    return process, children(process)


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    """In the order in which they were started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in found.split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def nobody_is_left(pids: list[int]) -> bool:
    """A process that ends closes its files a moment before it is gone."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(is_alive, pids)):
        time.sleep(0.01)
    return not any(map(is_alive, pids))


@watched
@pytest.mark.parametrize(
    ("signum", "words"),
    [
        (signal.SIGKILL, "rank 1 of the model was killed by signal 9"),
        (signal.SIGSTOP, "rank 1 of the model stood still for 5 s"),
    ],
    ids=["fault-119-a-rank-that-is-killed-ends-all", "a-rank-that-stands-still-ends-all"],
)
def test_a_lost_rank_ends_all_with_one_error(signum: int, words: str, endless: Path) -> None:
    process, ranks = running(endless)
    assert len(ranks) == 2
    os.kill(ranks[1], signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 8
    assert err.decode().splitlines()[0] == f"llamacli: error: {words}"
    assert err.count(b"llamacli: error: ") == 1
    assert nobody_is_left(ranks)


@watched
def test_a_rank_of_torchrun_that_stands_still_ends_all_with_one_error(endless: Path) -> None:
    """Also where no other rank of its machine could kill it."""
    agents = agents_of_torchrun(2, 1, "-m", endless, "-n", "-1")
    pipes = [agent.stdout for agent in agents if agent.stdout is not None]
    select.select(pipes, [], [])  # rank 0 writes
    ranks = [pid for agent in agents for pid in children(agent)]
    (stopped,) = (r for r in ranks if b"\0RANK=1\0" in Path(f"/proc/{r}/environ").read_bytes())
    os.kill(stopped, signal.SIGSTOP)
    ends = [agent.communicate(timeout=60)[1] for agent in agents]
    assert all(agent.returncode != 0 for agent in agents)
    lines = b"".join(ends).decode().splitlines()
    said = [line for line in lines if line.startswith("llamacli: error: ")]
    assert said == ["llamacli: error: rank 1 of the model stood still for 6 s"]
    assert nobody_is_left(ranks)


@watched
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_the_program(signum: int, endless: Path) -> None:
    process, ranks = running(endless)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)  # both streams end with the last process
    assert process.returncode == (130 if signum == signal.SIGINT else -9)
    assert err == b""
    assert nobody_is_left(ranks)


def test_a_reader_that_leaves_ends_all_ranks_silently(endless: Path) -> None:
    program = shlex.join([*PROGRAM, "run", "-m", str(endless), "--tp", "2", "-n", "-1", "The"])
    done = in_shell(f"{program} | head -c 9", CUDA_VISIBLE_DEVICES="")
    assert (done.code, done.out, done.err) == (141, b" moon see", "")
