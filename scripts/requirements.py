"""Print the packages for another backend: setup.cfg's, without TensorFlow.

python scripts/requirements.py jax test    (the extras to add)
"""

import configparser
import sys
from pathlib import Path

options = configparser.ConfigParser(interpolation=None)
options.read(Path(__file__).resolve().parent.parent / "setup.cfg")
lines = options["options"]["install_requires"].split("\n")
for extra in sys.argv[1:]:
    lines += options["options.extras_require"][extra].split("\n")
for line in lines:
    if line.strip() and not line.strip().startswith("tensorflow"):
        print(line.strip())
