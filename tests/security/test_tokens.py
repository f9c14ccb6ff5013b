"""S5: the token is a password: private from its first byte, sent only where nobody can listen."""

import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from daal.errors import ClusterError, ConfigError
from pipelines.cli import app
from pipelines.tools.jobs import Jobs, check_address
from pipelines.workers.ray_token import ensure_private_token

TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def home(tmp_path, monkeypatch):
    """With a umask that hides nothing."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_s5_the_token_s_file_is_private_whatever_the_umask(home):
    ensure_private_token()
    token = home / ".ray/auth_token"
    assert mode(token) == 0o600 and mode(token.parent) == 0o700
    first = token.read_text()
    assert len(bytes.fromhex(first)) == 32
    token.chmod(0o644)  # as Ray writes it
    ensure_private_token()
    assert mode(token) == 0o600 and token.read_text() == first


def test_s5_the_token_s_file_where_the_user_wants_it(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "secrets/ray"))
    ensure_private_token()
    assert mode(home / "secrets/ray") == 0o600 and not (home / ".ray").exists()


@pytest.mark.parametrize("name, value", [("MODE", "disabled"), ("TOKEN", TOKEN)])
def test_s5_no_file_where_none_is_needed(home, monkeypatch, name, value):
    monkeypatch.setenv(f"RAY_AUTH_{name}", value)
    ensure_private_token()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265", "https://10.0.0.5:1"],
)
def test_s5_addresses_that_keep_the_token_secret(address):
    check_address(address)


@pytest.mark.parametrize(
    "address",
    ["http://10.0.0.5:8265", "HTTP://localhost.example.org:8265", "http://0.0.0.0:8265",
     "http://127.0.0.1@example.org:8265", "http://[fe80::1]:8265"],
)  # fmt: skip
def test_s5_addresses_that_need_a_word(address):
    with pytest.raises(ConfigError, match=r"unencrypted.*ssh -L.*https.*--insecure"):
        check_address(address)
    check_address(address, insecure=True)


@pytest.mark.parametrize("address", ["10.0.0.5:8265", "ray://10.0.0.5:10001", "", "http://[::1"])
def test_s5_addresses_that_are_none(address):
    with pytest.raises(ConfigError, match="not a dashboard's address"):
        check_address(address, insecure=True)


@pytest.mark.parametrize("command", [["submit", "demo"], ["status"], ["logs", "x"], ["stop", "x"]])
def test_s5_every_command_that_sends_the_token_asks(command):
    result = CliRunner().invoke(app, [*command, "--address=http://192.0.2.1:8265"])
    assert isinstance(result.exception, ConfigError)
    assert "--insecure" in str(result.exception)


class Listener(BaseHTTPRequestHandler):
    """Notes who asked."""

    def do_GET(self):
        self.server.heard.append(self.headers.get("Authorization"))
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def listeners():
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Listener) for _ in range(2)]
    for server in servers:
        server.heard = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("variables", [["RAY_ADDRESS"], ["RAY_API_SERVER_ADDRESS"],
                                       ["http_proxy", "HTTP_PROXY", "all_proxy"]])  # fmt: skip
def test_s5_the_address_that_was_checked_is_the_one_that_is_asked(
    listeners, variables, monkeypatch
):
    given, other = listeners
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # put back after the test
    monkeypatch.setenv("no_proxy", "example.org")
    for variable in variables:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{other.server_port}")
    with pytest.raises((ClusterError, ConfigError)):
        Jobs(f"http://127.0.0.1:{given.server_port}").all()
    assert given.heard and not other.heard


def test_s5_no_command_prints_the_token(tiny_world, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    data = [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]
    run = [f"out={tmp_path}/run", "network.weights=none", "network.backbone=resnet18"]
    for command in (["config", "show"], ["validate"], ["size"]):
        result = CliRunner().invoke(app, [*command, "demo", *data, *run])
        assert result.exit_code == 0 and result.output, (command, result.exception)
        assert TOKEN not in result.output + result.stderr
