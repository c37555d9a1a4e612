"""How many sockets a process may open."""

import resource
import subprocess
import sys

import pytest

from libs.common.http.bounds import within_open_files


@pytest.mark.parametrize(
    ("soft", "allowed"), [(1024, 512), (100_000, 4_000), (resource.RLIM_INFINITY, 4_000), (1, 1)]
)
def test_of_what_a_process_may_open_a_share_is_kept_for_the_rest(
    soft: int, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert within_open_files(4_000, 1 / 2) == allowed


def test_a_process_may_open_as_many_files_as_the_machine_lets_it() -> None:
    script = (
        "import resource as r\n"
        "from libs.common.http.bounds import raise_open_files\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(r.RLIMIT_NOFILE)[1]))\n"
        "raise_open_files()\n"
        "soft, hard = r.getrlimit(r.RLIMIT_NOFILE)\n"
        "assert soft == hard, (soft, hard)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
