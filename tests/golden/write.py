"""Write the results of all golden runs again: ``python -m tests.golden.write``."""

import json
import tempfile
from pathlib import Path

from tests.golden import RUNS, figures, path_of

if __name__ == "__main__":
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            path_of(name).write_text(json.dumps(figures(name, Path(folder)), indent=1) + "\n")
        print(path_of(name))
