"""A kubelet that asks for new certificates; the kubelet itself is the scenario's, here are its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.machine import kubelet, systemd

PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kubelet, "_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(systemd, "journal", lambda *_: ["no such token"])
    for kind in ("client", "server"):
        issue(tmp_path, kind, "old")
    return tmp_path


def issue(directory: Path, kind: str, content: str) -> None:
    (directory / f"kubelet-{kind}-{content}.pem").write_text(PEM.format(content))
    link = directory / f"kubelet-{kind}-current.pem"
    link.unlink(missing_ok=True)
    link.symlink_to(directory / f"kubelet-{kind}-{content}.pem")


def test_it_has_new_ones_and_the_former_are_forgotten(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart(_timeout: float) -> str:
        assert kubelet.held() == {"client": "", "server": ""}
        issue(directory, "client", "new")
        return ""

    monkeypatch.setattr(kubelet, "_restart", restart)
    assert kubelet.renew(1) == ""
    # The serving certificate waits for its approval, so the former one is kept.
    assert kubelet.conclude()
    assert (directory / "kubelet-server-before.pem").exists()
    assert not (directory / "kubelet-client-old.pem").exists()
    issue(directory, "server", "new")
    assert kubelet.conclude()
    assert not kubelet.conclude()
    assert sorted(path.name for path in directory.iterdir()) == [
        "kubelet-client-current.pem",
        "kubelet-client-new.pem",
        "kubelet-server-current.pem",
        "kubelet-server-new.pem",
    ]


@pytest.mark.parametrize("reason", ["kubelet.service is failed", ""])
def test_one_that_gets_none_has_its_former_ones_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    restarts: list[dict[str, str]] = []

    def restart(_timeout: float) -> str:
        restarts.append(kubelet.held())
        return reason if len(restarts) == 1 else ""

    monkeypatch.setattr(kubelet, "_restart", restart)
    said = kubelet.renew(0.3)
    assert (reason or "it got no client certificate within 0 s") in said
    assert said.endswith("it has its former ones again. Its last words: no such token")
    assert restarts == [{"client": "", "server": ""}, {kind: PEM.format("old") for kind in ("client", "server")}]
    assert sorted(path.name for path in directory.iterdir() if path.is_symlink()) == [
        "kubelet-client-current.pem",
        "kubelet-server-current.pem",
    ]
