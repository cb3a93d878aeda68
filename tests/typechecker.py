"""The run-time type checker of the tests: beartype, accepting ints for floats (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
