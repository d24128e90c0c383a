import sys
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(NBS))  # for execute.py


@pytest.fixture(scope="session")
def models():
    "The shipped pocket-sd on the CPU in float32."
    from deepdive.sampling_loop import data_folder, load_models
    return load_models(data_folder() / "pocket-sd", device="cpu")
