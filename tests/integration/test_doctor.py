"""`tokenshard doctor`: what it looks at, what it says where something is wrong, and that it leaves nothing behind."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from integration.command import tokenshard_command
from tokenshard.cli.main import cli
from tokenshard.codecs.pack import PackCodec
from tokenshard.doctor import machine
from tokenshard.doctor.check import Check, Finding, option_secrets, run_check
from tokenshard.doctor.codes import code_checks
from tokenshard.doctor.storage import store_check
from tokenshard.store import Store

pytestmark = pytest.mark.integration


def failing(text: str) -> Check:
    def look() -> Finding:
        raise OSError(text)

    return Check("it", look, "do this")


def test_all_is_well_on_the_machine_of_the_tests(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--json", "--store", str(tmp_path / "new")], standalone_mode=False)
    found = json.loads(done.output)
    assert (done.return_value, found["ok"]) == (0, True)
    names = [check["name"] for check in found["checks"]]
    codecs = [f"codec {name}" for name in ("pack", "zstd", "context", "copy", "multiset")]
    assert [name for name in names if name.startswith("codec")] == codecs
    assert {"python", "packages", "extras", "memory", "disk", "gpu", "determinism", "store"} <= set(names)
    assert list(tmp_path.iterdir()) == []


def test_every_line_that_is_not_ok_names_a_remedy() -> None:
    done = CliRunner().invoke(cli, ["doctor"])
    lines = done.output.splitlines()
    for line, following in pairwise(lines):
        if line.startswith(("note", "failed")):
            assert following.strip().startswith("-> ")


def test_a_codec_that_decodes_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackCodec.decode

    def wrong(self: PackCodec, *rest: Any, **more: Any) -> Any:
        ids = right(self, *rest, **more)
        ids[7] ^= 1
        return ids

    monkeypatch.setattr(PackCodec, "decode", wrong)
    results = {check.name: run_check(check) for check in code_checks()[:2]}
    assert [results[name].state for name in ("codec pack", "codec zstd")] == ["failed", "ok"]
    assert "differ" in results["codec pack"].text
    assert results["codec pack"].remedy


def test_one_check_that_raises_does_not_keep_the_others_from_running() -> None:
    result = run_check(failing("no such\n device"))
    assert (result.state, result.text, result.remedy) == ("failed", "OSError: no such device", "do this")


def test_secrets_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    options = {"key": "my-key-id", "client_kwargs": {"aws_session_token": "tick-tock"}, "endpoint_url": "http://x"}
    said = run_check(failing("hush-hush my-key-id tick-tock http://x"), option_secrets(options)).text
    assert said == "OSError: *** *** *** http://x"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    have = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: None if name in {"av", "zstandard"} else have(name))
    results = {
        check.name: run_check(check) for check in machine.machine_checks() if check.name in {"packages", "extras"}
    }
    assert (results["packages"].state, results["packages"].text) == ("failed", "zstandard is missing")
    assert results["extras"].state == "note"
    assert "video" in results["extras"].remedy
    assert "pip install 'tokenshard[" in results["extras"].remedy


def test_releases_are_compared_as_numbers() -> None:
    assert machine.release("2.10.1+cpu") > machine.release("2.9")
    assert ("torch", "2.6", "") in machine.requirements()


def test_a_bucket_is_tried_and_left_empty(s3_url: str) -> None:
    result = run_check(store_check(s3_url, {}))
    assert result.state == "ok", result.text
    assert list(Store(s3_url).list()) == []


def test_a_missing_bucket_and_a_server_that_is_not_there_are_told(s3_server: str) -> None:
    result = run_check(store_check("s3://no-such-bucket/x", {}))
    assert (result.state, "no-such-bucket" in result.text) == ("failed", True)
    assert "credentials" in result.remedy


def test_a_store_that_ignores_conditions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the server knew nothing of If-None-Match."""
    monkeypatch.setattr(Store, "_create_once", lambda self, name, content, tag: self._put_once(name, content))
    result = run_check(store_check(str(tmp_path), {}))
    assert (result.state, "second create" in result.text) == ("failed", True)
    assert "If-None-Match" in result.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_is_reached_and_one_that_is_not_there_is_told(ray_address: str) -> None:
    def tried(address: str) -> tuple[int, dict[str, str]]:
        done = tokenshard_command("doctor", "--json", "--address", address)
        return done.returncode, json.loads(done.stdout)["checks"][-1]

    code, check = tried(ray_address)
    assert (code, check["name"], check["state"]) == (0, "ray", "ok"), check["text"]
    assert "CPUs" in check["text"]
    code, check = tried("127.0.0.1:9")
    assert (code, check["state"]) == (1, "failed")
    assert check["remedy"].startswith("start the cluster")
