"""Ray's token: made where there is none, and shown only to a cluster that asks for it."""

import os
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from pipelines.workers.ray_token import ensure_private_token, token_refused


@pytest.fixture
def no_token(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that it is restored at the end
        monkeypatch.delenv(name)


def test_a_machine_without_a_home__its_own_ray_has_a_token(no_token, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file/home"))
    ensure_private_token()
    assert len(bytes.fromhex(os.environ["RAY_AUTH_TOKEN"])) == 32


def test_a_user_without_a_home_in_passwd__makes_no_folder_of_that_name(
    no_token, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of an unknown user
    ensure_private_token()
    assert list(tmp_path.iterdir()) == [] and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_place_that_was_asked_for_and_can_t_be_written__is_an_error(
    no_token, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file/token"))
    with pytest.raises(OSError, match="file"):
        ensure_private_token()


class Gcs(grpc.GenericRpcHandler):
    """A cluster's first port, as far as the token goes."""

    def __init__(self, token):
        self.token = token
        self.heard = []

    def service(self, call):
        given = dict(call.invocation_metadata).get("authorization")
        self.heard.append(given)

        def answer(request, context):
            if self.token and given != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    "asks_for, mode, given, refused, sent",
    [
        ("right", "token", "right", None, [None, "Bearer right"]),
        ("right", "token", "wrong", "it refuses the token", [None, "Bearer wrong"]),
        ("right", "disabled", "right", "it asks for a token, and RAY_AUTH_MODE is not", [None]),
        ("right", "token", "", "it asks for a token, and /no/where can't be read", [None]),
        (None, "token", "right", None, [None]),  # not sent
    ],
)
def test_a_cluster_s_token(asks_for, mode, given, refused, sent, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/where")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # which isn't asked
    gcs = Gcs(asks_for)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[gcs])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = token_refused(f"127.0.0.1:{port}", 30)
    finally:
        server.stop(None).wait()
    assert (found or "").startswith(refused or "") and (found is None) == (refused is None)
    assert gcs.heard == sent
