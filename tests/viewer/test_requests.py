"""What the viewer answers, and whom: no file of this machine, no stranger, no error without a word of help."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tokenshard.errors import SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.viewer.opened import Opened
from tokenshard.viewer.server import Viewer
from viewing import Browser, viewing

SECRET = b"the secret of this test"


@pytest.fixture(scope="module")
def beside_secrets(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dataset with a secret beside it, and a link inside it that leads there."""
    root = tmp_path_factory.mktemp("secrets")
    shutil.copytree(pictures, root / "tokens")
    (root / "secret.txt").write_bytes(SECRET)
    os.symlink(root / "secret.txt", root / "tokens" / "link.txt")
    os.symlink(root, root / "tokens" / "data" / "up")
    return root / "tokens"


ESCAPES = [
    "../secret.txt",
    "../../secret.txt",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "%2e%2e%2fsecret.txt",
    "..%5csecret.txt",
    "%252e%252e%252fsecret.txt",
    "{root}/secret.txt",
    "%2f{root}/secret.txt",
    "link.txt",
    "data/up/secret.txt",
    "secret.txt%00.png",
    "%00",
    "....//secret.txt",
]
PLACES = [
    "/{}",
    "/static/{}",
    "/static/../{}",
    "/api/{}",
    "/api/samples/{}",
    "/api/samples/{}/picture.png",
    "/api/samples/0/{}",
    "/api/codebook/{}",
    "/api/codebook/0/{}",
    "/api/keys?key={}",
    "/api/samples?key={}",
    "/api/samples?where={}",
    "/api/map?grid={}",
    "/api/search?q={}",
    "/api/codebook/0/some.png?codes={}",
]


def test_no_request_leads_out_of_the_dataset(beside_secrets: Path) -> None:
    with viewing(beside_secrets) as browser:
        assert browser.ask("/").status == 200
        for place in PLACES:
            for escape in ESCAPES:
                path = place.format(escape.format(root=beside_secrets.parent))
                reply = browser.ask(path)
                assert SECRET not in reply.body, path
                assert reply.status < 500, (path, reply)
                if reply.status >= 400:
                    assert reply.problem, path


def test_no_file_but_those_of_the_page_is_served(browser: Browser) -> None:
    for name in ("__init__.py", "app.py", "../app.py", "main.js%00", "main.js/", "."):
        assert browser.ask(f"/static/{name}").status == 404
    assert browser.ask("/static/main.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("localhost:7878", 200),
        ("LOCALHOST", 200),
        ("[::1]:7878", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:7878", 421),
        ("user@localhost", 421),
        ("127.0.0.1, evil.example", 421),
        ("192.168.0.7", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(browser: Browser, host: str, status: int) -> None:
    for path in ("/", "/static/main.js", "/api/dataset"):
        assert browser.ask(path, host=host).status == status


def test_a_request_without_a_host_or_with_two_is_refused(browser: Browser) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", browser.port), timeout=10) as line:
            line.sendall(b"GET /api/dataset HTTP/1.0\r\n" + hosts + b"\r\n")
            assert line.recv(1 << 16).split(b" ")[1] in (b"421", b"400")


def test_further_names_are_answered_where_the_user_says_so(pictures: Path) -> None:
    with viewing(pictures, allowed=["data.lab"]) as browser:
        assert browser.ask("/api/dataset", host="data.lab:7878").status == 200
        assert browser.ask("/api/dataset", host="other.lab").status == 421


def test_a_viewer_of_all_addresses_answers_any_address_but_no_strange_name(pictures: Path) -> None:
    with viewing(pictures, host="0.0.0.0") as browser:
        assert browser.ask("/api/dataset", host="192.168.0.7:7878").status == 200
        assert browser.ask("/api/dataset", host="evil.example").status == 421


def test_nothing_can_be_written(browser: Browser) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        reply = browser.ask("/api/samples", method)
        assert reply.status == 405
        assert "changes nothing" in reply.problem


def test_every_answer_keeps_the_page_to_itself(browser: Browser) -> None:
    for path in ("/", "/static/main.js", "/api/dataset", "/api/samples/0/picture.png", "/api/nothing", "/nothing"):
        headers = browser.ask(path, origin="http://evil.example").headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_an_answer_is_sent_once_and_kept_where_it_names_its_state(browser: Browser) -> None:
    first = browser.ask("/api/samples/3/picture.png")
    again = browser.ask("/api/samples/3/picture.png", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert "no-cache" in first.headers["cache-control"]
    state = browser.get("dataset")["etag"]
    assert "immutable" in browser.ask(f"/api/samples/3/picture.png?v={state}").headers["cache-control"]
    assert "immutable" not in browser.ask("/api/samples/3/picture.png?v=other").headers["cache-control"]
    assert browser.ask("/api/samples/9999").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("samples/240", 404, "go from 0 to 239"),
        ("samples/-1", 400, "expected a whole number"),
        ("samples/1e3", 400, "expected a whole number"),
        ("samples/99999999999999999999", 400, "expected a whole number"),
        ("samples/0/codes?level=1", 404, "no level 1"),
        ("samples/0/rate?levels=2", 400, "the ids have 1"),
        ("samples/0/rate?codes=63", 400, "there are 32, 16"),
        ("samples/0/original.png", 404, "--originals"),
        ("samples/0/clip.mp4", 404, "no clip"),
        ("samples?where=label+%3C", 400, "invalid syntax"),
        ("samples?where=colour+%3D%3D+1", 400, "no column 'colour'"),
        ("samples?where=label+%3D%3D+'x'", 400, "label"),
        ("codebook/1", 404, "no level 1"),
        ("codebook/0/64", 404, "go from 0 to 63"),
        ("codebook/0?order=best", 400, "there are most, least, number"),
        ("codebook/0/some.png?codes=1,x", 404, "go from 0 to 63"),
        ("keys?key=none", 404, "no sample with key 'none'"),
        ("maps", 400, "holds no grids"),
        ("search?q=wings", 400, "holds no page vectors"),
    ],
)
def test_what_cannot_be_answered_says_why(browser: Browser, path: str, status: int, message: str) -> None:
    reply = browser.ask(f"/api/{path}")
    assert reply.status == status, reply.body
    assert message in reply.problem


def test_a_folder_without_a_dataset_is_named_with_what_to_do(tmp_path: Path) -> None:
    with viewing(tmp_path / "nowhere") as browser:
        assert browser.ask("/").status == 200
        reply = browser.ask("/api/dataset")
        assert reply.status == 400
        assert "no token dataset here" in reply.problem
        assert "convert" in reply.problem


def test_a_dataset_is_shown_once_it_is_whole(pictures: Path, tmp_path: Path) -> None:
    with viewing(tmp_path / "tokens") as browser:
        assert browser.ask("/api/dataset").status == 400
        shutil.copytree(pictures, tmp_path / "tokens")
        assert browser.get("dataset")["samples"] == 240


def test_a_damaged_manifest_and_a_newer_format_are_named(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "tokens")
    manifest = tmp_path / "tokens" / "manifest" / "00000001.json"
    whole = manifest.read_text(encoding="utf-8")
    manifest.write_text(whole[:-9], encoding="utf-8")
    with viewing(tmp_path / "tokens") as browser:
        reply = browser.ask("/api/dataset")
        assert (reply.status, reply.json["error"]["kind"]) == (422, "damaged")
        assert "restore the file" in reply.problem
        manifest.write_text(whole.replace('"min_reader": 1', '"min_reader": 9'), encoding="utf-8")
        assert "upgrade with" in browser.ask("/api/dataset").problem


def test_of_a_damaged_shard_the_keys_are_still_listed_and_the_pictures_say_what_is_wrong(
    pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "tokens")
    dataset = open_dataset(tmp_path / "tokens")
    shard = dataset.manifest.shards[1]
    codes = shard.row_groups[0].codes[0]
    with open(tmp_path / "tokens" / shard.path, "r+b") as file:
        file.seek(codes.offset)
        file.write(bytes(codes.length))
    with viewing(tmp_path / "tokens") as browser:
        listed = browser.get("samples?from=45&count=20")["samples"]
        assert [sample["number"] for sample in listed] == list(range(45, 65))
        for kind in ("thumbnail.png", "picture.png"):
            assert browser.ask(f"/api/samples/49/{kind}").status == 200
            reply = browser.ask(f"/api/samples/50/{kind}")
            assert (reply.status, reply.json["error"]["kind"]) == (422, "damaged")
            assert shard.path in reply.problem
            assert "damaged" in reply.problem


def test_a_port_that_is_taken_is_refused_with_a_hint(browser: Browser, pictures: Path) -> None:
    with pytest.raises(SpecError, match="give another --port, or 0"):
        Viewer(lambda: Opened(open_dataset(pictures)), port=browser.port)


def test_shards_that_cannot_hold_a_key_are_not_even_opened(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "tokens")
    for shard in open_dataset(tmp_path / "tokens").manifest.shards[1:]:  # the first one says what columns there are
        if shard.max_key < "ship/":
            (tmp_path / "tokens" / shard.path).unlink()
    with viewing(tmp_path / "tokens") as browser:
        found = browser.get("samples?key=ship/&count=200")
        assert len(found["samples"]) == 80
        assert found["next"] is None
        reply = browser.ask("/api/samples?key=hip/&contains=1")
        assert (reply.status, reply.json["error"]["kind"]) == (422, "damaged")
        assert "missing" in reply.problem
