import os
import sys
from pathlib import Path

import pytest

# Each worker, with the kernels that it starts, keeps to its share of the cores: torch is severalfold slower where threads outnumber them.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))

NBS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(NBS))  # for execute.py


@pytest.fixture(scope="session")
def models():
    "The shipped pocket-sd on the CPU in float32."
    from deepdive.sampling_loop import data_folder, load_models
    return load_models(data_folder() / "pocket-sd", device="cpu")
