"""What only a real server shows: bodies as they come over the wire."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A served installation of its own on SQLite, with the demo in it."""
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "LICENTIA_ENV": "test", "VAR_DIR": str(folder), "PUBLIC_URL": f"http://127.0.0.1:{port}"}
    for line in (["migrate", "-v0"], ["seed_demo", "--json"]):
        done = subprocess.run([sys.executable, "manage.py", *line], cwd=ROOT, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
    demo = json.loads(done.stdout)
    process = subprocess.Popen([sys.executable, "manage.py", "serve", "--port", str(port)], cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{demo['base_url']}/health/live")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield demo, folder
    finally:
        process.terminate()
        process.wait(40)


def headers(demo) -> dict[str, str]:
    return {
        "authorization": f"License {demo['licenses'][0]['key']}",
        "x-licentia-nonce": "n" * 22,
        "content-type": "application/json",
    }


def test_it_does_not_take_a_chunked_body_for_an_empty_one(server):
    demo, _ = server

    def chunks():
        yield b'{"product":'
        yield b'"another"}'

    answer = httpx.post(f"{demo['base_url']}/api/v1/validate", content=chunks(), headers=headers(demo))

    assert (answer.status_code, answer.json()["code"]) == (411, "length_required")
    assert "signature" in answer.headers


def test_it_reads_the_same_body_when_its_length_is_said(server):
    demo, _ = server

    answer = httpx.post(f"{demo['base_url']}/api/v1/validate", content=b'{"product":"another"}', headers=headers(demo))

    assert (answer.status_code, answer.json()["code"]) == (200, "wrong_product")


def test_it_writes_refusals_down_by_itself(server):
    demo, folder = server
    httpx.post(f"{demo['base_url']}/api/v1/validate", content=b'{"product":"third"}', headers=headers(demo))

    deadline, found = time.monotonic() + 15, 0
    while not found and time.monotonic() < deadline:
        time.sleep(0.3)
        with sqlite3.connect(folder / "licentia.sqlite3") as database:
            found = database.execute("SELECT count(*) FROM licensing_decisionrecord").fetchone()[0]

    assert found
