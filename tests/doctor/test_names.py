"""What the host's own name leads to. A machine without names: tests/launch/test_no_names.py."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest

from megatron_kaiyuan.cluster.discover import discover
from megatron_kaiyuan.doctor import names
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.names import examine_names

ONE = discover({})
SEVERAL = replace(ONE, world_size=2)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of this host's name; none: nobody knows it."""
    known: list[str] = []

    def getaddrinfo(name: str, *_: object, **__: object) -> list:
        assert name == socket.gethostname()
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known]

    monkeypatch.setattr(names.socket, "getaddrinfo", getaddrinfo)
    return known


def examined(who=ONE, **environ: str) -> tuple[list[str], list[str]]:
    """Problems and notes."""
    found = Examination()
    examine_names(found, who, environ)
    problems, notes = ([one.message for one in found.findings if one.level == level] for level in ("problem", "note"))
    return problems, notes


def test_a_name_that_leads_to_the_host_is_right(answers: list[str]) -> None:
    answers += ["10.0.0.7", "10.0.0.7"]
    assert examined(SEVERAL) == examined(ONE) == ([], [])


def test_an_unknown_name_is_a_problem_of_several_nodes(answers: list[str]) -> None:
    problems, notes = examined(ONE)
    assert not problems and "is not known here (no address); one node needs no name" in notes[0]
    problems, notes = examined(SEVERAL)
    assert not notes and "add it to /etc/hosts with this host's address, or set GLOO_SOCKET_IFNAME" in problems[0]
    problems, notes = examined(SEVERAL, GLOO_SOCKET_IFNAME="eth0")
    assert not problems and "GLOO_SOCKET_IFNAME is set" in notes[0]


def test_a_name_that_leads_to_loopback_keeps_other_hosts_out(answers: list[str]) -> None:
    """As installers of Debian write it into /etc/hosts."""
    answers.append("127.0.1.1")
    assert examined(ONE) == ([], [])
    problems, _ = examined(SEVERAL)
    assert "leads to 127.0.1.1, which other hosts cannot reach" in problems[0]


def test_a_silent_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_SECONDS", 0.05)
    monkeypatch.setattr(names.socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    _, notes = examined(ONE)
    assert "is not known here (no answer in 0.05 s)" in notes[0]
