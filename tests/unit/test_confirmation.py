from __future__ import annotations

import pytest

from kubewright import confirmation
from kubewright.errors import UserError


def test_the_clusters_name_goes_on() -> None:
    confirmation.check("removes everything", "lab", "lab")
    assert "lab" in confirmation.question("removes everything", "lab")


@pytest.mark.parametrize(
    ("said", "words"),
    [(None, "add -e confirm=lab"), ("prod", "'prod' is not the name of this cluster, lab"), ("", "'' is not the name")],
)
def test_anything_else_does_nothing(said: str | None, words: str) -> None:
    with pytest.raises(UserError, match="nothing has been done") as caught:
        confirmation.check("removes everything", "lab", said)
    assert words in str(caught.value)
