"""How many pictures a second the worker processes decode and cut to 256 x 256.

python examples/imagenet256/decode_rate.py [WORKERS]
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import open_source

SIZE, PICTURES, BATCH = (500, 375), 200, 64  # ImageNet's most common size


def main(workers: int, rounds: int = 10) -> None:
    """Time some thousand pictures, the start of the workers left out."""
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(PICTURES):
            small = Image.frombytes("RGB", (50, 38), dice.randbytes(3 * 50 * 38))
            small.resize(SIZE, Image.Resampling.BICUBIC).save(Path(folder, f"{k}.jpg"), quality=90)
        source = open_source(folder, 256)
        rows = [[dice.randrange(PICTURES) for _ in range(BATCH)] for _ in range(workers * rounds)]
        bad = BadFiles(0, print)
        batches = read_batches(source, rows, workers=workers, substitute=True, bad=bad)
        next(batches)
        began = time.perf_counter()
        count = sum(len(read) for _, read in batches)
        seconds = time.perf_counter() - began
    print(f"{workers} workers: {count / seconds:.0f} pictures a second")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
