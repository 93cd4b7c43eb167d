"""Loads mutated programs in the native trainer, each in turn; run as a process of its own.

A crash ends the process: its last line names the mutation. Usage: files of a training and an
evaluation program, a seed, how many, and whether the mutants get a sound seal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_runtime.errors import ProgramError
from edge_runtime.native_trainer import NativeTrainer
from edge_runtime.program_file import seal, unseal
from edge_runtime.trainer import Batch, Rates


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with a few bits flipped, bytes overwritten, a part cut off, or a part moved."""
    mutant = bytearray(data)
    kind = rng.integers(6)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(mutant)))
        if kind == 0:
            mutant[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            mutant[at] = int(rng.integers(256))
        elif kind == 2:
            run = rng.bytes(int(rng.integers(1, 17)))
            mutant[at : at + len(run)] = run[: len(mutant) - at]
        elif kind == 3:  # a number: small, or at the edge of its type
            at -= at % 4
            number = int(rng.choice([0, 1, 2, 5, 17, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
            mutant[at : at + 4] = number.to_bytes(4, "little")[: len(mutant) - at]
        elif kind == 4:
            length, source = int(rng.integers(1, 129)), int(rng.integers(len(mutant)))
            mutant[at : at + length] = mutant[source : source + length]
        else:
            del mutant[max(1, at) :]
            break
    return bytes(mutant)


def main(training: Path, evaluation: Path, seed: int, count: int, resealed: bool) -> None:
    files = [training.read_bytes(), evaluation.read_bytes()]
    sound = NativeTrainer(threads=1)
    sound.load(files[0], files[1])
    layout, weights = sound.layout, sound.weights()
    batch = Batch(
        np.ones((layout.batch, *layout.shape), np.float32),
        np.zeros(layout.batch, np.int64),
        np.full(layout.batch, 1.0 / layout.batch, np.float32),
    )
    for array in (batch.x, batch.y, batch.sample_weight):
        array.flags.writeable = False
    rng = np.random.default_rng(seed)
    outcomes = {"refused": 0, "failed": 0, "ran": 0}
    for number in range(count):
        pair = list(files)
        which = int(rng.integers(2))
        pair[which] = (
            seal(mutate(bytes(unseal(files[which])), rng))
            if resealed
            else mutate(files[which], rng)
        )
        print("mutation", number, flush=True)
        trainer = NativeTrainer(threads=1)
        outcome = "refused"
        try:
            trainer.load(pair[0], pair[1])
            outcome = "failed"
            trainer.assign(list(range(layout.k)), weights)
            trainer.train_step(batch, Rates(0.1))
            trainer.evaluate(batch)
            outcome = "ran"
        except ProgramError as error:
            assert "\n" not in str(error), repr(error)
        outcomes[outcome] += 1
    print(outcomes)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]),
        sys.argv[5] == "resealed",
    )  # fmt: skip
