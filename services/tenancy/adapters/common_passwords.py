"""The most common passwords, of leaks and of habit: a list that comes with zxcvbn, kept offline."""

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


@cache
def common_passwords() -> frozenset[str]:
    """Return the list, in lower case. Read when it is first asked for, and kept: some 3 MB."""
    package = find_spec("zxcvbn")
    assert package is not None
    assert package.origin is not None
    # By its file: to import the package would build five more dictionaries, of 11 MB.
    spec = spec_from_file_location("_lists", Path(package.origin).with_name("frequency_lists.py"))
    assert spec is not None
    assert spec.loader is not None
    lists = module_from_spec(spec)
    spec.loader.exec_module(lists)
    return frozenset(lists.FREQUENCY_LISTS["passwords"])
