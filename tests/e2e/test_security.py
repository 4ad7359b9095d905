"""Real processes that trust each other by certificates, and their clients by keys."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from memserve_jax.client import Client, ClientError
from memserve_jax.core.credentials import Credentials, client_credentials
from memserve_jax.core.tls_files import TlsPaths
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub
from memserve_jax.proto.tls import open_blocking_channel, with_bearer
from tests.helpers.certificates import CLUSTER_NAME, make_authority, write_keys
from tests.helpers.goldens import load_golden
from tests.helpers.processes import (
    PATIENCE_S,
    ROOT,
    ServedProcesses,
    memserve,
    process_cluster,
    refusal,
    served_processes,
    settings,
)
from tests.helpers.secured import ALICE, BOB, Secured, secure

GOLDEN = load_golden("llama3")
GREEDY = {"temperature": 0.0, "ignore_eos": True, "timeout_s": PATIENCE_S}

INSTANCE = ("instance", "--name", "c0", "--role", "colocated")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return secure(tmp_path_factory.mktemp("secured"))


@pytest.fixture(scope="module")
def served(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcesses]:
    """A prefill, a decode and a scheduler process under mutual TLS."""
    folder = tmp_path_factory.mktemp("served")
    with served_processes(
        str(GOLDEN.path), "--topology", "1p1d", folder=folder, overrides=secured.overrides
    ) as cluster:
        yield cluster


def assert_answers(client: Client) -> None:
    answer = client.generate(token_ids=GOLDEN.prompts[2], max_tokens=24, **GREEDY)
    assert list(answer.token_ids) == GOLDEN.tokens[2]


def code_of(client: Client) -> str:
    """Returns how the client's request is refused."""
    with pytest.raises(ClientError) as caught:
        client.generate(token_ids=[1, 2, 3], max_tokens=2, **GREEDY)
    return caught.value.code


def test_a_client_with_a_key_gets_answers_and_no_more(served: ServedProcesses, secured: Secured):
    with secured.client(served.target, secured.guest, ALICE) as client:
        assert_answers(client)
        for call in (
            client.status,
            client.quiesce,
            lambda: client.drain("p0", timeout_s=1.0, force=True),
        ):
            with pytest.raises(ClientError) as caught:
                call()
            assert caught.value.code == "PERMISSION_DENIED"
        route = client.route(token_ids=GOLDEN.prompts[2])
        assert route.target == route.route.decode_target


def test_a_member_looks_after_the_cluster(served: ServedProcesses, secured: Secured):
    with secured.client(served.target, secured.member) as member:
        assert_answers(member)
        member.quiesce(timeout_s=PATIENCE_S)
        statuses = {status.instance: status for status in member.status().instances}
        assert set(statuses) == {"p0", "d0"}
        sent = {each.transport: each.bytes for each in statuses["p0"].transports}
        assert sent["tcp"] > 0, "KV went over TLS"


def test_strangers_are_turned_away(
    served: ServedProcesses, secured: Secured, tmp_path: pathlib.Path
):
    other = make_authority(tmp_path / "other").issue("x", CLUSTER_NAME)
    mixed = TlsPaths(ca=secured.member.ca, certificate=other.certificate, key=other.key)
    for paths in (other, mixed, TlsPaths(ca=secured.member.ca)):
        with secured.client(served.target, paths, ALICE) as client:
            assert code_of(client) == "UNAVAILABLE"
    with Client(served.target) as client:  # plain text
        assert code_of(client) == "UNAVAILABLE"
    for key in (None, BOB, ALICE[:-1]):
        with secured.client(served.target, secured.guest, key) as client:
            assert code_of(client) == "UNAUTHENTICATED"


def test_keys_and_certificates_change_without_a_restart(served: ServedProcesses, secured: Secured):
    pids = served.children
    write_keys(secured.api_keys, f"{BOB} bob")
    with secured.client(served.target, secured.guest, ALICE) as client:
        assert code_of(client) == "UNAUTHENTICATED"
    secured.authority.issue("member", CLUSTER_NAME, "second.test")
    with secured.client(served.target, secured.guest, BOB) as client:
        assert_answers(client)
    # Only the new certificate has that name.
    named = secured.credentials(secured.guest, BOB)
    for wanted in ("second.test", CLUSTER_NAME):
        named = type(named)(tls=named.tls, server_name=wanted, bearer=named.bearer)
        with Client(served.target, credentials=named) as client:
            assert_answers(client)
    write_keys(secured.api_keys, f"{ALICE} alice")
    assert served.children == pids


@pytest.mark.slow
def test_commands_show_keys_and_certificates_from_files(
    served: ServedProcesses, secured: Secured, tmp_path: pathlib.Path
):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "memserve_jax.cli", *arguments, "--target", served.target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    key = write_keys(tmp_path / "key", ALICE)
    done = run("generate", "hello", "--max-tokens", "2", "--greedy", *secured.options)
    assert done.returncode == 0, done.stderr
    done = run("status", *secured.options)
    assert "p0" in done.stdout
    guest = [*("--tls-ca", secured.guest.ca, "--tls-cert", secured.guest.certificate or "")]
    guest += ["--tls-key", secured.guest.key or "", "--tls-server-name", CLUSTER_NAME]
    done = run("generate", "hello", "--max-tokens", "2", *guest, "--api-key-file", key)
    assert done.returncode == 0, done.stderr
    done = run("status", *guest, "--api-key-file", key)
    assert done.returncode == 1
    assert done.stderr.startswith("memserve status: PERMISSION_DENIED")


def test_no_secret_is_in_a_log(served: ServedProcesses, secured: Secured):
    """Last of those that use the cluster: whatever they did is in the log by now."""
    log = served.serve.log
    assert "refused /memserve.v1." in log
    assert secured.member.key is not None
    private = pathlib.Path(secured.member.key).read_text().splitlines()[1:-1]
    for secret in (ALICE, BOB, ALICE[:-1], *private):
        assert secret not in log


@pytest.mark.slow
def test_keys_alone_guard_a_cluster_on_loopback(tmp_path: pathlib.Path):
    cluster_key = write_keys(tmp_path / "cluster", "sk-cluster-" + "c" * 24)
    api_keys = write_keys(tmp_path / "api", ALICE)
    overrides = {"security.cluster_key": cluster_key, "security.api_keys": api_keys}
    with process_cluster(str(GOLDEN.path), "1p1d", folder=tmp_path, overrides=overrides) as cluster:
        for key, code in ((None, "UNAUTHENTICATED"), (ALICE, "PERMISSION_DENIED")):
            with Client(cluster.target, credentials=client_credentials(api_key=key)) as client:
                with pytest.raises(ClientError) as caught:
                    client.status()
                assert caught.value.code == code
        alice = client_credentials(api_key=ALICE)
        with Client(cluster.target, credentials=alice) as client:
            assert_answers(client)
            answer = client.route(token_ids=GOLDEN.prompts[2])
        assert tokens_at(answer.target, answer.route, alice) == GOLDEN.tokens[2]
        answer.route.prefill_target = "127.0.0.1:9"  # somebody who would like to see the key
        with pytest.raises(grpc.RpcError) as refused:
            tokens_at(answer.target, answer.route, alice)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


def tokens_at(target: str, route: pb.RouteInfo, credentials: Credentials) -> list[int]:
    """Streams directly from an instance, and returns the tokens."""
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=GOLDEN.prompts[2]),
        sampling=pb.SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
        route=route,
    )
    with open_blocking_channel(target, credentials) as channel:
        call = GenerateServiceStub(channel).Generate(
            request, timeout=PATIENCE_S, metadata=with_bearer(credentials)
        )
        return [token for message in call for token in message.token_ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("serve", "--host", "0.0.0.0"), "host: got '0.0.0.0' without TLS, allowed: a loopback"),
        (("serve", "--processes", "--host", "0.0.0.0"), "host: got '0.0.0.0' without TLS"),
        (("scheduler", "--host", "0.0.0.0", "--port", "0"), "host: got '0.0.0.0' without TLS"),
        (
            (*INSTANCE, "--scheduler", "127.0.0.1:1", "--host", "0.0.0.0"),
            "host: got '0.0.0.0' without TLS",
        ),
        (
            (*INSTANCE, "--scheduler", "192.0.2.1:1"),
            "192.0.2.1:1: not a loopback address, allowed without TLS: --insecure",
        ),
        (
            ("scheduler", "--set", "security.api_keys=/no/such"),
            "security.api_keys: allowed with security.cluster_key",
        ),
        (
            ("scheduler", "--port", "0", "--set", "security.cluster_key=/no/such"),
            "security.cluster_key: /no/such: cannot read",
        ),
    ],
)
def test_what_others_could_read_is_refused(command: tuple[str, ...], words: str):
    found = refusal(*command, *settings(str(GOLDEN.path), {}))
    assert words in found.line


def test_insecure_says_that_plain_text_will_do(tmp_path: pathlib.Path):
    options = settings(str(GOLDEN.path), {})
    with memserve(
        *("scheduler", "--host", "0.0.0.0", "--port", "0", "--insecure", *options),
        log=tmp_path / "log",
    ) as scheduler:
        assert scheduler.target.startswith("0.0.0.0:")
