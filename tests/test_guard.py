"""The guard that keeps the tests offline."""

import socket

import pytest


def test_a_connection_to_the_outside_is_refused_and_remembered(no_network: list[str]):
    with socket.socket() as outside, pytest.raises(ConnectionRefusedError, match="no network"):
        outside.connect(("192.0.2.1", 80))
    assert no_network == ["192.0.2.1:80"]
    no_network.clear()


def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
