"""Bundles: everything that a machine without a network lacks, made on one that has a network.

`create` writes a directory of files, or of pieces of a size; `install` takes it on the other machine, after the
program ``bootstrap.py`` inside it, which needs nothing but Python, has installed llmhost.
"""

from llmhost.bundle.create import PARTS, Wish, create_bundle
from llmhost.bundle.install import Installed, install_bundle
from llmhost.bundle.show import Checked, check_bundle, read_bundle

__all__ = ["PARTS", "Checked", "Installed", "Wish", "check_bundle", "create_bundle", "install_bundle", "read_bundle"]
