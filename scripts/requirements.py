"""Print the packages for another backend: setup.cfg's, without TensorFlow and without imaug.

python scripts/requirements.py jax test    (the extras to add)
"""

import configparser
import sys
from pathlib import Path

ONLY_WITH_TENSORFLOW = ("tensorflow", "imaug")

options = configparser.ConfigParser(interpolation=None)
options.read(Path(__file__).resolve().parent.parent / "setup.cfg")
lines = options["options"]["install_requires"].split("\n")
for extra in sys.argv[1:]:
    lines += options["options.extras_require"][extra].split("\n")
for line in lines:
    if line.strip() and not line.strip().startswith(ONLY_WITH_TENSORFLOW):
        print(line.strip())
