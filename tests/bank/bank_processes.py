"""Real processes that write to, read and kill each other over one bank; run by test_bank_processes.py.

    python bank_processes.py kill PLACE ROUNDS     # kill -9 a writer at random moments, check after each
    python bank_processes.py writers PLACE EACH    # two writers at once
    python bank_processes.py both PLACE ROUNDS     # two writers at once, kill -9 one of them at random moments

Heavy modules are imported once, and children forked from there: faiss and gRPC do no work before a fork. What a writer
does is a function of the bank's version, and is told in the reason, so that the log can be replayed by `replay`.
"""

import json
import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from ra_hmd.bank.bank import Bank
from ra_hmd.bank.versions import BankRows
from ra_hmd.core.errors import UserError

DIM = 8


def vector(name: str) -> np.ndarray:
    """The embedding that belongs to an id."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=DIM).astype(np.float32)


def rows(names: list[str], label: int) -> tuple[BankRows, np.ndarray]:
    return BankRows(names, np.full(len(names), label)), np.stack([vector(name) for name in names])


def plan(bank: Bank, name: str) -> dict:
    """The next operation: add three, relabel two, remove one, now and then roll back."""
    random.seed(f"{bank.version} {name}")
    kind = random.choice(["add", "add", "relabel", "remove", "rollback"])
    if kind == "add" or len(bank) < 8 or bank.version < 2:
        return {"add": [f"{name}-{bank.version}-{part}" for part in range(3)], "label": random.randrange(2)}
    chosen = random.sample(range(len(bank)), 2)
    if kind == "relabel":
        return {"relabel": {bank.ids[place]: 1 - int(bank.labels[place]) for place in chosen}}
    if kind == "remove":
        return {"remove": [bank.ids[chosen[0]]]}
    return {"rollback": random.randrange(max(1, bank.version - 9), bank.version)}


def do(bank: Bank, operation: dict) -> int:
    """The version that it made; 0 where another writer was faster, or it would change nothing."""
    said = {"author": "child", "reason": json.dumps(operation)}
    try:
        if "add" in operation:
            return bank.add(*rows(operation["add"], operation["label"]), **said).version
        if "relabel" in operation:
            return bank.relabel(operation["relabel"], **said).version
        if "remove" in operation:
            return bank.remove(operation["remove"], **said).version
        return bank.rollback(operation["rollback"], **said).version
    except UserError as error:
        assert "does not have these" in str(error) or "would stay as it is" in str(error), error  # noqa: PT017
        return 0


def replay(bank: Bank) -> list[dict[str, int]]:
    """Id to label at every version, from what the log says was done; index 0 is before the first."""
    states: list[dict[str, int]] = [{}, {f"first-{part}": part % 2 for part in range(10)}]
    for entry in bank.log[1:]:
        operation, state = json.loads(entry.reason), dict(states[-1])
        if "add" in operation:
            state |= dict.fromkeys(operation["add"], operation["label"])
        elif "relabel" in operation:
            state |= operation["relabel"]
        elif "remove" in operation:
            del state[operation["remove"][0]]
        else:
            state = dict(states[operation["rollback"]])
        states.append(state)
    return states


def check(bank: Bank, *, deep: bool) -> None:
    """The bank is exactly what its log says, rows with their own embeddings."""
    assert [entry.version for entry in bank.log] == list(range(1, bank.version + 1))
    expected = replay(bank)[-1]
    assert dict(zip(bank.ids, bank.labels.tolist(), strict=True)) == expected, "torn"
    assert bank.log[-1].counts["rows"] == len(bank.ids) == len(set(bank.ids))
    if deep:
        held = bank.to_embeddings()
        assert np.array_equal(held.embedding, np.stack([vector(name) for name in held.ids])), "embeddings"


def fork(work) -> tuple[int, int]:
    """Process id and read end of the pipe that `work(write)` of a child writes lines to."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    os.close(read)
    code = 1
    try:
        work(lambda text: os.write(write, f"{text}\n".encode()))
        code = 0
    except BaseException as error:
        said = f"error {type(error).__name__} {error}".replace("\n", " ")
        os.write(write, f"{said}\n".encode())
    finally:
        os._exit(code)


def everything(read: int) -> list[str]:
    with os.fdopen(read) as file:
        return file.read().split("\n")[:-1]


def write_forever(place: str, name: str, bank: Bank | None, *, planned: bool = False):
    """With a bank that was opened before the fork, or one that the child opens; `planned`: also tells what it did."""

    def work(tell, bank=bank) -> None:
        bank = bank or Bank.open(place)
        tell("open")
        while True:
            bank.refresh()
            operation = plan(bank, name)
            version = do(bank, operation)
            if version:
                tell(f"{version} {json.dumps(operation)}" if planned else version)

    return work


def read_until(place: str, stop: Path):
    def work(tell) -> None:
        seen = 0
        bank = Bank.open(place)
        while not stop.exists():
            bank.refresh()
            check(bank, deep=seen % 20 == 0)
            if seen % 50 == 0:
                check(Bank.open(place), deep=False)
            seen += 1
            time.sleep(0.01)
        tell(seen)

    return work


def check_in_child(place: str) -> dict:
    """Open and check in a process of its own: gRPC must not be alive where we fork."""

    def work(tell) -> None:
        bank = Bank.open(place)
        check(bank, deep=True)
        tell(json.dumps({"version": bank.version, "rows": len(bank)}))
        bank.close()

    child, read = fork(work)
    lines = everything(read)
    os.waitpid(child, 0)
    assert lines
    assert not lines[-1].startswith("error"), lines
    return json.loads(lines[-1])


def create(place: str) -> None:
    meta, embedding = rows([f"first-{part}" for part in range(10)], 0)
    meta.labels[:] = np.arange(10) % 2

    def work(tell) -> None:
        Bank.create(place, meta, embedding, fingerprint={}, author="test", reason="start").close()

    child, read = fork(work)
    assert everything(read) == []
    os.waitpid(child, 0)


def kill_rounds(place: str, rounds: int) -> dict:
    lite = place.endswith(".db")
    create(place)
    stop = Path(f"{place}.stop")
    reader = None if lite else fork(read_until(place, stop))
    chance = random.Random(7)
    result = {"rounds": rounds, "acknowledged": 0, "unacknowledged": 0, "leftovers": 0}
    version = 1
    bank = None if lite else Bank.open(place)
    for number in range(rounds):
        child, read = fork(write_forever(place, f"r{number}", bank))
        first = os.read(read, 5)
        assert first == b"open\n", first
        time.sleep(chance.uniform(0, 0.3 if lite else 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = everything(read)
        assert not any(line.startswith("error") for line in lines), lines
        last = max([version, *map(int, lines)])
        if not lite:
            result["leftovers"] += bool(list(Path(place, "versions").glob(".*.tmp")))
        if bank is None or number % 20 == 0:
            version = check_in_child(place)["version"]
        else:
            version = bank.refresh()
            check(bank, deep=False)
        assert last <= version <= last + 1, f"acknowledged {last}, found {version}"
        result["acknowledged"] += len(lines)
        result["unacknowledged"] += version - last
    stop.touch()
    if reader is not None:
        lines = everything(reader[1])
        os.waitpid(reader[0], 0)
        assert lines[-1].isdecimal(), lines
        result["read"] = int(lines[-1])
    return result | check_in_child(place)


def two_writers(place: str, each: int) -> dict:
    create(place)
    pause = 0.1 if place.endswith(".db") else 0  # else who waits for the file may never get it

    def work_of(name: str):
        def work(tell) -> None:
            done = 0
            while done < each:
                with Bank.open(place) as bank:
                    operation = plan(bank, name)
                    time.sleep(0.002)  # the other may be faster: what was planned on an old version
                    version = do(bank, operation)
                if version:
                    tell(version)
                    done += 1
                time.sleep(pause)

        return work

    children = [fork(work_of(name)) for name in ("a", "b")]
    versions = [everything(read) for _, read in children]
    for child, _ in children:
        os.waitpid(child, 0)
    assert not any(line.startswith("error") for lines in versions for line in lines), versions
    numbers = [[int(line) for line in lines] for lines in versions]
    return {"versions": sorted(number for line in numbers for number in line), "by_writer": numbers} | check_in_child(
        place
    )


def kill_both(place: str, rounds: int) -> dict:
    """Two writers and a reader; each round kills one of the writers, and starts it again."""
    create(place)
    if not place.endswith(".lance"):  # its threads must not be alive where we fork
        Bank.open(place).close()  # all that is imported is imported once
    stop, chance = Path(f"{place}.stop"), random.Random(7)
    reader, reads = fork(read_until(place, stop))
    writers, pipes = {}, []
    for number in range(rounds + 2):
        name = chance.choice("ab") if number > 1 else "ab"[number]
        if name in writers:
            time.sleep(chance.uniform(0, 0.06))
            os.kill(writers[name], signal.SIGKILL)
            os.waitpid(writers[name], 0)
        writers[name], pipe = fork(write_forever(place, f"{name}{number}", None, planned=True))
        assert os.read(pipe, 5) == b"open\n"
        pipes.append(pipe)
    for child in writers.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lines = [line for pipe in pipes for line in everything(pipe)]
    assert not any(line.startswith("error") for line in lines), lines
    stop.touch()
    seen = everything(reads)
    _, status = os.waitpid(reader, 0)
    assert status == 0, f"the reader ended with {status}: {seen}"
    assert seen[-1].isdecimal(), seen
    acknowledged = dict(line.split(" ", 1) for line in lines)
    assert len(acknowledged) == len(lines), "two changes were acknowledged as one version"

    def work(tell) -> None:
        bank = Bank.open(place)
        check(bank, deep=True)
        lost = [version for version, said in acknowledged.items() if bank.log[int(version) - 1].reason != said]
        tell(json.dumps({"version": bank.version, "rows": len(bank), "lost": lost}))

    child, read = fork(work)
    found = json.loads(everything(read)[-1])
    os.waitpid(child, 0)
    return {"rounds": rounds, "acknowledged": len(lines), "read": int(seen[-1]), **found}


if __name__ == "__main__":
    _, command, where, count = sys.argv
    if where.endswith(".db"):
        import milvus_lite  # noqa: F401
        import pymilvus  # noqa: F401
    print(json.dumps({"kill": kill_rounds, "writers": two_writers, "both": kill_both}[command](where, int(count))))
